use block_core::BlockError;

use super::disk::{Disk, run, vault};
use super::*;
use crate::layout::Class;

fn store(buffers: usize) -> (Rc<Disk>, Rc<Pages<Disk>>) {
    let disk = Rc::new(Disk::default());
    let buffers = Pool::private(buffers, BLOCK_SIZE).expect("memory");
    (Rc::clone(&disk), Rc::new(Pages::new(disk, vault(), buffers)))
}

fn at(pba: u64) -> Binding {
    Binding::page(Class::Map, 1, Pba(pba))
}

async fn written(pages: &Pages<Disk>, pba: u64, keep: bool) -> Seal {
    let mut page = pages.blank().await;
    page.fill(pba as u8);
    pages.write(at(pba), page, keep).await.expect("written")
}

/// Runs futures side by side, as the tasks of a worker would.
async fn all(futures: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>>) {
    let mut running = futures;
    std::future::poll_fn(|context| {
        running.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[test]
fn a_page_reads_back_from_the_store_and_from_the_device() {
    let (disk, pages) = store(4);
    run(async move {
        let kept = written(&pages, 5, true).await;
        let gone = written(&pages, 6, false).await;
        assert!(pages.cached(&kept).is_some());
        assert!(pages.cached(&gone).is_none());
        assert_ne!(disk.contents.borrow()[&5][..], [5; BLOCK_SIZE], "sealed on the device");
        pages.purge();
        for (pba, seal) in [(5, kept), (6, gone)] {
            let page = pages.load(&seal, at(pba)).await.expect("whole");
            assert_eq!(page[..], [pba as u8; BLOCK_SIZE]);
            assert!(pages.cached(&seal).is_some());
        }
    });
}

/// Ten requests need one map page that is not there: one read, ten answers.
#[test]
fn loads_of_one_page_at_the_same_time_read_it_once() {
    let (disk, pages) = store(4);
    run(async move {
        let seal = written(&pages, 5, false).await;
        let load = || {
            let pages = Rc::clone(&pages);
            Box::pin(async move {
                assert_eq!(pages.load(&seal, at(5)).await.expect("whole")[0], 5);
            }) as _
        };
        all((0..10).map(|_| load()).collect()).await;
        assert_eq!(disk.reads.get(), 1);
    });
}

/// The request that reads a page for others may be dropped at shutdown of its
/// session: the others read it themselves.
#[test]
fn a_load_that_is_given_up_leaves_the_page_to_the_next() {
    let (disk, pages) = store(2);
    run(async move {
        let seal = written(&pages, 5, false).await;
        let mut first = Box::pin(pages.load(&seal, at(5)));
        let once = std::future::poll_fn(|context| {
            std::task::Poll::Ready(first.as_mut().poll(context).is_ready())
        });
        assert!(!once.await && disk.reads.get() == 1, "on its way");
        let others = Rc::clone(&pages);
        let second = Box::pin(async move {
            assert_eq!(others.load(&seal, at(5)).await.expect("whole")[0], 5);
        });
        drop(first);
        all(vec![second]).await;
        assert!(pages.flights.borrow().is_empty());
    });
}

#[test]
fn damage_says_what_it_is_and_is_not_kept() {
    let (disk, pages) = store(4);
    run(async move {
        let seal = written(&pages, 5, false).await;
        let what = async |pba| pages.load(&seal, at(pba)).await.map(|_| ()).map_err(|no| no.what);
        assert_eq!(what(6).await, Err(What::Unopened), "misplaced");
        assert_eq!(what(Disk::BLOCKS).await, Err(What::Malformed));
        disk.rot(Pba(5));
        assert_eq!(what(5).await, Err(What::Unopened));
        disk.rot(Pba(5));
        disk.broken.borrow_mut().push(5);
        assert_eq!(what(5).await, Err(What::Unreadable(BlockError::Medium)));
        disk.broken.borrow_mut().clear();
        assert_eq!(what(5).await, Ok(()));
        let other = Binding { level: 2, ..at(5) };
        let damage = pages.load(&seal, other).await.map(|_| ()).expect_err("kept as level 1");
        assert_eq!(damage.to_string(), "the Map page at block 5 is not what was written there");
    });
}

/// A page whose write failed was kept all the same: reads were served from
/// memory that no device has.
#[test]
fn a_page_that_could_not_be_written_is_not_kept() {
    let (disk, pages) = store(4);
    run(async move {
        disk.broken.borrow_mut().push(5);
        let page = pages.blank().await;
        let error = pages.write(at(5), page, true).await.expect_err("broken");
        let unwritten = PagesError::Unwritten { pba: Pba(5), error: BlockError::Medium };
        assert_eq!(error, unwritten);
        assert!(pages.kept.borrow().is_empty());
    });
}

/// Memory is what was given, whatever is loaded; the pages that somebody
/// holds stay; the others go by when they were used.
#[test]
fn the_store_fits_its_buffers() {
    let (disk, pages) = store(3);
    run(async move {
        let mut seals = Vec::new();
        for pba in 0..8 {
            seals.push(written(&pages, pba, true).await);
        }
        let held = pages.load(&seals[0], at(0)).await.expect("whole");
        for pba in [1, 2, 1, 3] {
            pages.load(&seals[pba], at(pba as u64)).await.expect("whole");
        }
        assert!(pages.cached(&seals[0]).is_some(), "held");
        assert!(pages.cached(&seals[1]).is_some(), "used after block 2");
        assert!(pages.cached(&seals[2]).is_none());
        let _other = pages.load(&seals[1], at(1)).await.expect("whole");
        let last = pages.blank().await;
        assert_eq!(pages.kept.borrow().len(), 2);
        // A writer with the last buffer does not wait for another to keep its page in.
        let seal = pages.write(at(9), last, true).await.expect("written");
        assert!(pages.cached(&seal).is_none());
        drop(held);
        assert_eq!(disk.writes.get(), 9);
    });
}

/// Twenty loads of different pages through two buffers, with pages held across
/// turns: whoever waits is told, nobody for ever.
#[test]
fn who_waits_for_a_buffer_gets_one() {
    let (_, pages) = store(2);
    run(async move {
        let mut seals = Vec::new();
        for pba in 0..20 {
            seals.push(written(&pages, pba, false).await);
        }
        let load = |(pba, seal): (usize, Seal)| {
            let pages = Rc::clone(&pages);
            Box::pin(async move {
                let page = pages.load(&seal, at(pba as u64)).await.expect("whole");
                for _ in 0..pba % 4 {
                    turn::yield_now().await;
                }
                assert_eq!(page[0], pba as u8);
            }) as _
        };
        all(seals.into_iter().enumerate().map(load).collect()).await;
        assert_eq!(pages.claims.waiting.get(), 0);
    });
}
