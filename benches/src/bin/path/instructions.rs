//! Instructions of a request, as callgrind counts them.

use std::collections::HashMap;

use benches::callgrind;

use crate::count::{Side, requests, work_arguments};
use crate::row::Row;

/// What one side's turns cost a request.
pub(crate) struct Counted {
    /// Instructions, but for what follows.
    pub(crate) ours: f64,
    /// Those of the frames' checksums.
    pub(crate) checksums: f64,
    /// Those of the soft controller, which a device would do by itself.
    pub(crate) controller: f64,
    /// Who copies a request's data: a copy each.
    pub(crate) copied_by: Vec<String>,
    /// The functions that are ours, the dearest first.
    pub(crate) functions: Vec<(f64, String)>,
}

/// What the names of the checksum's functions contain.
const CHECKSUMS: [&str; 2] = ["block-core/src/crc", "block_core::crc"];

/// What the names of the soft controller's functions contain, or of who called a
/// copy for it: it alone copies between pieces of DMA memory.
const CONTROLLER: [&str; 3] = ["nvme/src/soft", "nvme::soft", "nvme::sys::copy"];

/// Instructions of the fastest copy of a block, 32 bytes a load and a store: whoever
/// has a copy made for so many a request copies its data.
const COPY: f64 = 256.0;

/// Counts one side's turns.
pub(crate) fn count(row: Row, depth: u16, side: Side) -> anyhow::Result<Counted> {
    let turns = match side {
        Side::Front => "*counted_front*",
        Side::Server => "*counted_server*",
    };
    let counted = callgrind::count(turns, None, &work_arguments(row, depth)?)?;
    Ok(sum_up(counted.functions()?, requests(depth)))
}

fn sum_up(places: Vec<(f64, String)>, requests: f64) -> Counted {
    let mut functions = HashMap::<String, f64>::new();
    let (mut checksums, mut controller) = (0.0, 0.0);
    for (count, place) in places {
        let count = count / requests;
        let is_of = |parts: &[&str]| parts.iter().any(|part| place.contains(part));
        if is_of(&CHECKSUMS) {
            checksums += count;
        } else if is_of(&CONTROLLER) {
            controller += count;
        } else if let Some((_, name)) = place.split_once(':') {
            *functions.entry(name.to_owned()).or_default() += count;
        }
    }
    let is_copy = |name: &str, count: f64| name.starts_with("__memcpy") && count > COPY;
    let copied_by = functions
        .iter()
        .filter(|(name, count)| is_copy(name.as_str(), **count))
        .map(|(name, _)| name.clone());
    let copied_by: Vec<String> = copied_by.map(|name| name.split('\'').skip(1).collect()).collect();
    functions.retain(|name, count| !is_copy(name, *count));
    let ours = functions.values().sum();
    let mut functions: Vec<(f64, String)> =
        functions.into_iter().map(|(name, count)| (count, name)).collect();
    functions.sort_by(|a, b| b.0.total_cmp(&a.0));
    Counted { ours, checksums, controller, copied_by, functions }
}
