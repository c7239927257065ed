//! One list of cases against every controller that is at hand: our soft one, in
//! this thread and beside it, and those that we did not write. Two halves of one
//! misunderstanding would pass each other's tests; they do not pass a stranger's.
//!
//! All controllers are set up alike (see [`subject`]). A case panics when the
//! driver or the controller is wrong, or says why it does not apply.

mod admin;
mod data;
#[path = "../direct_folder/mod.rs"]
mod direct_folder;
mod guest;
mod qtest;
mod queues;
mod rates;
mod resets;
mod subject;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use subject::{Rig, Subject};

/// How a case went.
enum Verdict {
    Passed,
    /// It does not apply, and why.
    Skipped(&'static str),
}

type Case = (&'static str, fn(&Rig<'_>) -> Verdict);

fn cases() -> Vec<Case> {
    [data::CASES, queues::CASES, admin::CASES, resets::CASES].concat()
}

#[test]
fn every_controller_passes_every_case() {
    let subjects = subject::all();
    let mut table = String::new();
    let mut failed = 0;
    let mut notes = Vec::new();
    let cases = cases();
    let wide = cases.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    table += &format!("{:wide$}", "");
    subjects.iter().for_each(|subject| table += &format!("  {}", subject.name));
    let mut spent = vec![0.0; subjects.len()];
    for (name, case) in cases {
        table += &format!("\n{name:wide$}");
        for (subject, spent) in subjects.iter().zip(&mut spent) {
            let start = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| case(&Rig::new(subject))));
            *spent += start.elapsed().as_secs_f64();
            let word = match outcome {
                Ok(Verdict::Passed) => "ok",
                Ok(Verdict::Skipped(why)) => {
                    notes.push(format!("{name} on {}: {why}", subject.name));
                    "-"
                }
                Err(_) => {
                    failed += 1;
                    "FAILED"
                }
            };
            table += &format!("  {word:w$}", w = subject.name.len());
        }
    }
    table += &format!("\n{:wide$}", "seconds");
    for (subject, spent) in subjects.iter().zip(&spent) {
        table += &format!("  {spent:<w$.1}", w = subject.name.len());
    }
    println!("{table}\n{}", notes.join("\n"));
    assert_eq!(failed, 0, "see the table");
    subjects.iter().for_each(|subject| println!("{}", rates::line(subject)));
}

/// A case that every controller skips tests nothing: there is one that skips none.
#[test]
fn the_soft_controller_skips_no_case() {
    let subject: Subject = subject::soft_here();
    for (name, case) in cases() {
        if [queues::INTERRUPTS, resets::BY_BUS].contains(&name) {
            continue; // They need another bus; the guest has it.
        }
        if let Verdict::Skipped(why) = case(&Rig::new(&subject)) {
            panic!("{name}: {why}");
        }
    }
}
