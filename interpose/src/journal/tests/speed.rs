//! How long a recovery takes. `cargo nextest run --release --run-ignored all
//! -p interpose replaying_a_million --no-capture`

use std::time::Instant;

use super::*;
use crate::layout::{Kind, Pointer};

const RECORDS: u64 = 1 << 20;

#[test]
#[ignore = "measures; for release builds"]
fn replaying_a_million_records_takes_well_under_half_a_second() {
    let disk = NullDisk::new(BlockCount(1 << 20), |_| false);
    let ring = ring(RECORDS / 63 + 100);
    let keys = keys();
    let memory = Pool::private(BUFFERS, BLOCK_SIZE).expect("memory");
    let device = Rc::new(disk.clone());
    let journal =
        Journal::new(device, Rc::clone(&keys), &memory, ring, FIRST, 1, 0).expect("memory");
    let journal = Rc::new(journal);
    let mut executor = turn::Executor::new(TASKS + 1);
    for task in 0..TASKS {
        let running = Rc::clone(&journal);
        executor.spawn(async move { running.run(task).await });
    }
    let began = Instant::now();
    let writing = Rc::clone(&journal);
    executor.spawn(async move {
        let seal = Seal { tag: [1; 16], seq: 1, era: EraId(1) };
        let pointer = Pointer { seal, kind: Kind::Data, ..Pointer::HOLE };
        for number in 0..RECORDS {
            let lba = Lba(number);
            writing.append(&Record::New { line: LineId(1), lba, pointer, hash: [2; 16] });
            if number % 63 == 62 {
                turn::yield_now().await;
            }
        }
        writing.flush().await.expect("the disk is good");
    });
    while executor.is_runnable() {
        executor.run(0);
    }
    assert_eq!(journal.failed(), None);
    println!("{RECORDS} records appended in {:?}", began.elapsed());

    let buffers = Pool::private(16, 64 * BLOCK_SIZE).expect("memory");
    let mut executor = turn::Executor::new(1);
    executor.spawn(async move {
        let start = Start { position: FIRST, mark: 0 };
        let began = Instant::now();
        let chain = scan(&disk, &keys, &buffers, &ring, start).await;
        let scanned = began.elapsed();
        let mut count = 0;
        let mut sink = |_| {
            count += 1;
            Ok(())
        };
        let end = chain.end.next;
        let mut reader = Reader::new(&disk, &keys, &buffers, &ring, FIRST, end);
        while reader.next(&mut sink).await.expect("whole") {}
        assert_eq!(count, RECORDS);
        println!(
            "{end} blocks scanned in {scanned:?}, scanned and replayed in {:?}",
            began.elapsed()
        );
    });
    while executor.is_runnable() {
        executor.run(0);
    }
}
