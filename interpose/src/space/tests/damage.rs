use super::*;
use crate::layout::Class;
use crate::pages::What;
use crate::pages::disk::run;
use crate::space::layout::{ENTRIES, ENTRY_BYTES, Home, PAGE_COUNT};

const BLOCKS: u64 = 600_000;

fn home(root: &SegmentRoot, level: u8, page: u64) -> Pba {
    root.segment.binding(level, page, Home::First).pba
}

/// What contradicts the counts is not written down as if it were true.
#[test]
fn an_impossible_change_is_named_and_nothing_is_written_over() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        let data = space.take(Purpose::Data, 4).await.expect("free").start.0;
        checkpoint(&space, &[(data, Change::Delta(65_533)), (data + 1, Change::Page)]).await;
        let impossible = [
            (data, Change::Delta(-65_534), 65_533, false),
            (data, Change::Delta(2), 65_533, false),
            (data, Change::Delta(i32::MAX), 65_533, false),
            (data, Change::Page, 65_533, false),
            (data, Change::Gone, 65_533, false),
            (data + 1, Change::Delta(1), PAGE_COUNT, false),
            (data + 1, Change::Page, PAGE_COUNT, false),
            (data + 2, Change::Gone, 0, true),
            (data + 2, Change::Delta(-1), 0, true),
            (data + 4, Change::Delta(1), 0, false),
            (data + 4, Change::Page, 0, false),
        ];
        for (pba, change, count, taken) in impossible {
            let pba = Pba(pba);
            let outcome = space.sweep([(pba, change)], None, &|_| false).await.map(|_| ());
            assert_eq!(outcome, Err(SweepError::Impossible { pba, count, taken, change }));
        }
        let outside = Pba(5000);
        let outcome = space.sweep([(outside, Change::Page)], None, &|_| false).await.map(|_| ());
        assert_eq!(outcome, Err(SweepError::Outside { pba: outside }));
        checkpoint(&space, &[(data, Change::Delta(1)), (data + 1, Change::Gone)]).await;
        assert_eq!(space.load_count(Pba(data)).await, Ok(65_534));
    });
}

/// Recovery replays a record that names a block which is in use: the journal
/// or the counts are wrong.
#[test]
fn a_claim_of_what_is_in_use_is_found_when_it_is_swept() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        let block = space.take(Purpose::Data, 1).await.expect("free").start;
        checkpoint(&space, &[(block.0, Change::Delta(1))]).await;
        let space = opened(&pages, space.roots()).await;
        let (pba, change) = (block, Change::Delta(1));
        assert!(space.claim(pba));
        assert!(!space.claim(pba));
        assert!(!space.claim(Pba(5000)));
        let outcome = space.sweep([(pba, change)], None, &|_| false).await.map(|_| ());
        assert_eq!(outcome, Err(SweepError::Impossible { pba, count: 1, taken: true, change }));
    });
}

/// A rotten page of counts costs its region, not the pool.
#[test]
fn blocks_whose_counts_are_damaged_are_not_handed_out() {
    run(async {
        let (disk, pages) = store(64);
        let root = formatted(&pages, 5000).await;
        pages.purge();
        disk.rot(home(&root, 0, 0));
        let space = opened(&pages, vec![root]).await;
        let mut left = 5000 - 2048;
        while left > 0 {
            let extent = space.take(Purpose::Data, 2048).await.expect("free");
            assert!(extent.start.0 >= 2048);
            left -= extent.count.0;
        }
        assert_eq!(space.take(Purpose::Data, 1).await, Err(Full));
        let damage = space.load_count(Pba(1)).await.expect_err("damaged");
        assert_eq!((damage.class, damage.what), (Class::Counts, What::Unopened));
        assert_eq!(space.durable_count(Pba(1)), None);
        let fault = space.counts(0).await.err().expect("damaged");
        assert_eq!((fault.damage, fault.blocks), (damage, extent(0, 2048)));
        assert_eq!(space.counts(1).await.expect("whole").iter().count(), 2048);
        let outcome = space.sweep([(Pba(1), Change::Gone)], None, &|_| false).await.map(|_| ());
        assert_eq!(outcome, Err(SweepError::Damage(damage)));
    });
}

/// What somebody who has the keys wrote into a pool of 5000 blocks.
#[derive(Clone, Copy)]
struct Forged {
    /// Into the counts of its third region, whose entry says that 904, all of
    /// them, are 0.
    counts: fn(&mut [u8]),
    /// Into the page above.
    directory: fn(&mut [u8]),
    /// Into the root: so many blocks more are free.
    more: u64,
}

const SOUND: Forged = Forged { counts: |_| (), directory: |_| (), more: 0 };

async fn forged(forged: Forged) -> (Rc<Pages<Disk>>, SegmentRoot) {
    let (_, pages) = store(64);
    let SegmentRoot { segment, top } = formatted(&pages, 5000).await;
    let Entry::Written { seal, home, free } = top else { panic!("not written") };
    let mut counts = pages.blank().await;
    (forged.counts)(&mut counts);
    let binding = segment.binding(0, 2, Home::First);
    let counts = pages.write(binding, counts, false).await.expect("written");
    let entry = Entry::Written { seal: counts, home: Home::First, free: 904 };
    let binding = segment.binding(1, 0, home);
    let mut page = pages.own(pages.load(&seal, binding).await.expect("whole")).await;
    page[2 * ENTRY_BYTES..3 * ENTRY_BYTES].copy_from_slice(&entry.encode());
    (forged.directory)(&mut page);
    let seal = pages.write(binding, page, false).await.expect("written");
    let top = Entry::Written { seal, home, free: free + forged.more };
    (pages, SegmentRoot { segment, top })
}

#[test]
fn what_is_forged_is_sound_but_for_what_is_forged() {
    run(async {
        let (pages, root) = forged(SOUND).await;
        let space = opened(&pages, vec![root]).await;
        assert_eq!(space.counts(2).await.expect("whole").iter().count(), 904);
    });
}

/// A page of the directory that does not add up to what its own entry says, or
/// has an entry past the end.
#[test]
fn a_directory_page_that_opens_and_lies_is_damage() {
    for lie in [
        Forged { more: 1, ..SOUND },
        Forged { directory: |page| page[3 * ENTRY_BYTES + 23] = 1, ..SOUND },
        Forged { directory: |page| page[2 * ENTRY_BYTES + 23] = 3, ..SOUND },
        Forged { directory: |page| page[2 * ENTRY_BYTES + 24] = 1, ..SOUND },
    ] {
        run(async move {
            let (pages, root) = forged(lie).await;
            let (space, damage) = Space::open(pages, vec![root]).await;
            assert_eq!(damage.iter().map(|one| one.what).collect::<Vec<_>>(), [What::Malformed]);
            assert_eq!(space.take(Purpose::Data, 1).await, Err(Full));
        });
    }
}

/// A page of counts with another number of zeroes than its entry says, or with
/// a count past the end.
#[test]
fn a_page_of_counts_that_opens_and_lies_is_damage() {
    for lie in [
        Forged { counts: |page| page[7] = 1, ..SOUND },
        Forged { counts: |page| page[2 * 904] = 1, ..SOUND },
    ] {
        run(async move {
            let (pages, root) = forged(lie).await;
            let space = opened(&pages, vec![root]).await;
            assert!((0..4096).chain([4999]).all(|pba| space.claim(Pba(pba))));
            assert_eq!(space.allocatable().0, 903);
            assert_eq!(space.take(Purpose::Data, 1).await, Err(Full));
            let fault = space.counts(2).await.err().expect("damaged");
            assert_eq!((fault.damage.what, fault.blocks), (What::Malformed, extent(4096, 904)));
            let outcome =
                space.sweep([(Pba(4999), Change::Page)], None, &|_| false).await.map(|_| ());
            assert_eq!(outcome, Err(SweepError::Damage(fault.damage)));
        });
    }
}

/// A rotten page of the directory costs what lies below it: the pool opens,
/// knows, and works with the rest.
#[test]
fn a_damaged_directory_page_is_told_when_the_pool_is_opened() {
    run(async {
        let (disk, pages) = store(64);
        let space = fresh(&pages, BLOCKS).await;
        let far = Pba(2 * ENTRIES * REGION_BLOCKS + 5);
        assert!(space.claim(far));
        checkpoint(&space, &[(far.0, Change::Page)]).await;
        let root = space.roots()[0];
        let whole = space.allocatable().0;
        pages.purge();
        disk.rot(home(&root, 1, 2));
        let (space, damage) = Space::open(Rc::clone(&pages), vec![root]).await;
        let first = 2 * ENTRIES * REGION_BLOCKS;
        assert_eq!(damage.iter().map(|one| one.pba).collect::<Vec<_>>(), [home(&root, 1, 2)]);
        assert_eq!(space.allocatable().0, whole - (BLOCKS - first - 1));
        assert_eq!(space.total().0, BLOCKS);
        assert!(space.take(Purpose::Data, 1).await.is_ok());
        let mut faults = Vec::new();
        assert_eq!(space.verify_directory(|fault| faults.push(fault)).await, 3 + 1);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].blocks, extent(first, BLOCKS - first));
    });
}

/// A device that lost a write gives an older version of the page back, sealed
/// for the same place: the entry's seal tells.
#[test]
fn an_older_page_in_the_same_home_is_damage() {
    run(async {
        let (disk, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        let at = home(&space.roots()[0], 0, 0);
        let older = disk.contents.borrow()[&at.0].clone();
        assert!(space.claim(Pba(100)));
        checkpoint(&space, &[(100, Change::Page)]).await;
        assert_eq!(disk.contents.borrow()[&at.0], older, "the other home is written");
        checkpoint(&space, &[(100, Change::Gone)]).await;
        let newer = disk.contents.borrow_mut().insert(at.0, older);
        pages.purge();
        let damage = space.load_count(Pba(100)).await.expect_err("damaged");
        assert_eq!((damage.pba, damage.what), (at, What::Unopened));
        disk.contents.borrow_mut().extend(newer.map(|newer| (at.0, newer)));
        assert_eq!(space.load_count(Pba(100)).await, Ok(0));
    });
}

/// The sweep's device fails: the durable counts are what they were, also when
/// the pool is opened again.
#[test]
fn a_sweep_that_cannot_write_leaves_the_durable_counts() {
    run(async {
        let (disk, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        let root = space.roots()[0];
        let block = space.take(Purpose::Pages, 1).await.expect("free").start;
        let other = root.segment.binding(1, 0, Home::Second).pba;
        disk.broken.borrow_mut().push(other.0);
        let outcome = space.sweep([(block, Change::Page)], None, &|_| false).await.map(|_| ());
        assert!(matches!(outcome, Err(SweepError::Unwritten(_))), "{outcome:?}");
        pages.purge();
        assert_eq!(space.load_count(block).await, Ok(0));
        assert_eq!(space.roots(), [root]);
        disk.broken.borrow_mut().clear();
        checkpoint(&space, &[(block.0, Change::Page)]).await;
        assert_eq!(space.load_count(block).await, Ok(PAGE_COUNT));
    });
}
