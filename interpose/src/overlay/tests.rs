use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::layout::EraId;

const LINE: LineId = LineId(3);
const BLOCKS: u64 = 400;

fn data(number: u32, birth: Epoch) -> Pointer {
    let seal = Seal { tag: [0; 16], seq: number, era: EraId(1) };
    Pointer { seal, pba: Pba(u64::from(number)), birth, kind: Kind::Data }
}

#[derive(Clone, Debug)]
enum Step {
    Store(u64),
    Share(u64, u64),
    Clear(u64, u64),
    /// Of the line: what it has is kept.
    Snapshot,
    /// Of another volume: the epoch ends, nothing is kept.
    OtherSnapshot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..BLOCKS).prop_map(Step::Store),
        2 => (0..BLOCKS, 0..BLOCKS).prop_map(|(lba, of)| Step::Share(lba, of)),
        2 => (0..BLOCKS, 1..80u64).prop_map(|(lba, count)| Step::Clear(lba, count)),
        1 => Just(Step::Snapshot),
        1 => Just(Step::OtherSnapshot),
    ]
}

proptest! {
    /// The model keeps a whole map for each snapshot. Reads at every epoch,
    /// the references of every block, and the stages that merging takes must
    /// agree with it.
    #[test]
    fn an_overlay_is_what_was_done(steps in prop::collection::vec(step(), 1..120)) {
        let mut overlay = Overlay::default();
        let (mut epoch, mut since, mut number) = (Epoch(1), Epoch(0), 0);
        let mut now: HashMap<u64, Pointer> = HashMap::new();
        let mut kept: Vec<(Epoch, HashMap<u64, Pointer>)> = Vec::new();
        for step in steps {
            match step {
                Step::Store(lba) => {
                    number += 1;
                    let pointer = data(number, epoch);
                    overlay.store((LINE, since), Lba(lba), pointer, [number as u8; 16]);
                    now.insert(lba, pointer);
                }
                Step::Share(lba, of) => {
                    let Some(&of) = now.get(&of).filter(|of| !of.is_hole()) else { continue };
                    let pointer = Pointer { birth: epoch, ..of };
                    overlay.share((LINE, since), Lba(lba), pointer);
                    now.insert(lba, pointer);
                }
                Step::Clear(lba, count) => {
                    let count = BlockCount(count.min(BLOCKS - lba));
                    let mut left = LbaRange { start: Lba(lba), count };
                    while left.count.0 > 0 {
                        let part = overlay.slice(LINE, left, 7);
                        overlay.clear((LINE, since), part, epoch);
                        left.start.0 += part.count.0;
                        left.count.0 -= part.count.0;
                    }
                    for lba in lba..lba + count.0 {
                        now.insert(lba, Pointer { birth: epoch, ..Pointer::HOLE });
                    }
                }
                Step::Snapshot => {
                    kept.push((epoch, now.clone()));
                    since = epoch;
                    epoch.0 += 1;
                }
                Step::OtherSnapshot => epoch.0 += 1,
            }
        }
        kept.push((epoch, now));
        for (epoch, map) in &kept {
            for lba in 0..BLOCKS {
                let expected = map.get(&lba).map_or(Known::Nothing, |&pointer| Known::Is(pointer));
                prop_assert_eq!(overlay.find(LINE, Lba(lba), *epoch), expected);
            }
        }
        // Every map's own pointers, counted where they are not inherited.
        let mut references: HashMap<u64, i32> = HashMap::new();
        let mut below: HashMap<u64, Pointer> = HashMap::new();
        let mut after = Epoch(0);
        for (upto, map) in &kept {
            let mut merged = below.clone();
            let mut from = Some(Lba(0));
            while let Some(at) = from {
                let (changes, next) = overlay.changes(LINE, (after, *upto), at, 13);
                let mut last = None;
                for change in changes {
                    let first = match change {
                        Change::Point(lba, pointer) => {
                            merged.insert(lba.0, pointer);
                            lba
                        }
                        Change::Hole(range) => {
                            for lba in range.start.0..range.end().0 {
                                merged.remove(&lba);
                            }
                            range.start
                        }
                    };
                    prop_assert!(last.is_none_or(|last| last < first));
                    last = Some(first);
                }
                from = next;
            }
            for lba in 0..BLOCKS {
                let content = |map: &HashMap<u64, Pointer>| {
                    map.get(&lba).filter(|pointer| !pointer.is_hole()).map(|pointer| pointer.pba)
                };
                prop_assert_eq!(content(&merged), content(map), "block {} at {:?}", lba, upto);
            }
            for (lba, pointer) in map.iter().filter(|(_, pointer)| !pointer.is_hole()) {
                if below.get(lba) != Some(pointer) {
                    *references.entry(pointer.pba.0).or_default() += 1;
                }
            }
            (below, after) = (map.clone(), *upto);
        }
        for number in 1..=u64::from(number) {
            let change = overlay.block(Pba(number)).expect("it was stored");
            prop_assert_eq!(change.delta, references.get(&number).copied().unwrap_or(0));
        }
    }
}
