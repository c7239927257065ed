use super::*;

/// What is damaged, and where it lies in the tree.
async fn page_at(ground: &Ground, tree: Tree, level: u8, index: u64) -> Pointer {
    let items = ground.items(tree, None).await;
    let found = items.into_iter().find_map(|item| match item {
        Item::Page { pointer, level: at, first }
            if at == level && first == first_index(index, level) =>
        {
            Some(pointer)
        }
        _ => None,
    });
    found.expect("there is such a page")
}

/// One page of a map rots: the reads that need it fail, the walk says which
/// blocks are touched and goes on, and a merge that needs it leaves the tree
/// as it was.
#[test]
fn a_damaged_page_fails_what_needs_it_and_nothing_else() {
    run(async {
        let ground = Ground::new(FEW);
        let indices: Vec<u64> = (0..1000).map(|number| number * 37).collect();
        let tree = ground.plant(Tree::EMPTY, 1, 3, &indices).await;
        let whole = ground.items(tree, None).await;
        let rotten = page_at(&ground, tree, 1, 740).await;
        ground.disk.rot(rotten.pba);
        ground.pages.purge();

        let damage = Damage { pba: rotten.pba, class: Class::Map, what: What::Unopened };
        let found = async |index| find(&ground.pages, Class::Map, &tree, index).await;
        assert_eq!(found(740).await, Err(damage));
        assert!(found(37).await.is_ok_and(|pointer| !pointer.is_hole()));
        let mut run = [Pointer::HOLE; 34];
        let read = find_run(&ground.pages, Class::Map, &tree, 620, &mut run).await;
        assert_eq!(read, Err(damage));

        let items = ground.items(tree, None).await;
        let damaged = Item::Damaged { indices: 640..768, pointer: rotten, level: 1, damage };
        assert!(items.contains(&damaged));
        let lost = |item: &&Item| match item {
            Item::Value { index, .. } => !(640..768).contains(index),
            Item::Page { pointer, .. } => *pointer != rotten,
            Item::Damaged { .. } => true,
        };
        assert!(items.iter().filter(|&item| *item != damaged).eq(whole.iter().filter(lost)));

        let mut merge = ground.merge(tree, 2, 3, |_, _| ()).await;
        merge.put(100, ground.value(Epoch(2))).await.expect("not damaged");
        let error = merge.put(740, ground.value(Epoch(2))).await.expect_err("damaged");
        assert_eq!(error, MergeError::Damaged(damage));
        let over = merge.put(2000, ground.value(Epoch(2))).await;
        assert_eq!(over, Err(MergeError::Over));
        assert_eq!(merge.finish().await, Err(MergeError::Over));
        ground.disk.rot(rotten.pba);
        assert_eq!(ground.items(tree, None).await, whole);
    });
}

/// The page opens and says what cannot be: a pointer of the wrong kind, or to
/// a block that the device does not have. So a disk that lies under a good
/// seal, or a bug of a former version, ends in an error.
#[test]
fn a_malformed_page_is_damage() {
    run(async {
        let ground = Ground::new(FEW);
        let wrong = [
            (1, Pointer { kind: Kind::Page, ..ground.value(Epoch(1)) }),
            (1, Pointer { pba: Pba(Disk::BLOCKS), ..ground.value(Epoch(1)) }),
            (2, ground.value(Epoch(1))),
        ];
        for (level, entry) in wrong {
            let mut page = ground.pages.blank().await;
            page[POINTER_BYTES..2 * POINTER_BYTES].copy_from_slice(&entry.encode());
            let binding = Binding::page(Class::Map, level, Pba(77));
            let seal = ground.pages.write(binding, page, false).await.expect("written");
            let root = Pointer { seal, pba: Pba(77), birth: Epoch(1), kind: Kind::Page };
            let tree = Tree::new(root, level).expect("low");

            let damage = Damage { pba: Pba(77), class: Class::Map, what: What::Malformed };
            let index = span(level - 1);
            let found = find(&ground.pages, Class::Map, &tree, index).await;
            assert_eq!(found, Err(damage));
            assert_eq!(find_cached(&ground.pages, Class::Map, &tree, index), Some(Err(damage)));
            let indices = index..2 * index;
            let damaged = Item::Damaged { indices, pointer: root, level, damage };
            let page = Item::Page { pointer: root, level, first: 0 };
            assert_eq!(ground.items(tree, None).await, [damaged, page]);
            let mut merge = ground.merge(tree, 2, level, |_, _| ()).await;
            let error = merge.clear(0..span(level)).await.expect_err("damaged");
            assert_eq!(error, MergeError::Damaged(damage));
        }
        assert_eq!(Tree::new(Pointer::HOLE, MAX_HEIGHT + 1), None);
        assert_eq!(Tree::new(ground.value(Epoch(1)), 0), None);
        let root = Tree::new(ground.value(Epoch(1)), 1).expect("low");
        assert!(find(&ground.pages, Class::Map, &root, 0).await.is_err());
    });
}

/// A checkpoint whose writes fail, or that finds no block, is not one: the
/// old tree is there, and no buffer is lost.
#[test]
fn a_merge_that_cannot_write_says_so_and_leaves_the_old_tree() {
    run(async {
        let ground = Ground::new(FEW);
        let indices: Vec<u64> = (0..500).map(|number| number * 128).collect();
        let tree = ground.plant(Tree::EMPTY, 1, 3, &indices).await;
        let whole = ground.items(tree, None).await;
        let taken = ground.blocks.taken.borrow().len() as u64;
        for broken in [true, false] {
            if broken {
                ground.disk.broken.borrow_mut().push(FIRST_PAGE + taken + 100);
            } else {
                ground.blocks.most.set(Some(ground.blocks.taken.borrow().len() + 100));
            }
            let mut merge = ground.merge(tree, 2, 3, |_, _| ()).await;
            let mut error = None;
            for &index in &indices {
                error = merge.put(index, ground.value(Epoch(2))).await.err();
                if error.is_some() {
                    break;
                }
            }
            if broken {
                assert!(matches!(error, Some(MergeError::Unwritten(_))), "{error:?}");
            } else {
                assert_eq!(error, Some(MergeError::Unallocated(NoBlock)));
            }
            assert_eq!(merge.finish().await, Err(MergeError::Over));
            ground.pages.purge();
            assert_eq!(ground.items(tree, None).await, whole);
        }
    });
}

/// A snapshot of a large volume and its head differ in one block: finding it
/// reads one path of each tree. A page that rotted is told, the rest is found.
#[test]
fn a_comparison_reads_what_was_changed_and_goes_on_behind_damage() {
    run(async {
        let ground = Ground::new(FEW);
        let indices: Vec<u64> = (0..1000).map(|number| number * 130).collect();
        let one = ground.plant(Tree::EMPTY, 1, 3, &indices).await;
        let other = ground.plant(one, 2, 3, &[13_000]).await;
        ground.pages.purge();
        let reads = ground.disk.reads.get();
        let differences = async |trees| {
            let mut diff = Diff::new(Rc::clone(&ground.pages), Class::Map, trees);
            let mut found = Vec::new();
            while let Some(difference) = diff.next().await {
                found.push(difference);
            }
            found
        };
        assert_eq!(differences([one, other]).await, [Difference::Changed(13_000..13_001)]);
        assert_eq!(ground.disk.reads.get() - reads, 6);

        let other = ground.plant(other, 3, 3, &[130, 50_000]).await;
        let rotten = page_at(&ground, other, 1, 13_000).await;
        ground.disk.rot(rotten.pba);
        ground.pages.purge();
        let damage = Damage { pba: rotten.pba, class: Class::Map, what: What::Unopened };
        let expected = [
            Difference::Changed(130..131),
            Difference::Damaged { indices: 12_928..13_056, damage },
            Difference::Changed(50_000..50_001),
        ];
        assert_eq!(differences([one, other]).await, expected);
    });
}

/// A page rots, and then something below it is written. Without going on the
/// whole pool would take no more changes; so the page is written anew, and says
/// of all that was not written just now that it is lost: not that it is zero.
/// What is written over is healed.
#[test]
fn what_a_damaged_page_said_is_lost_and_can_be_written_over() {
    for level in [1, 2] {
        run(async move {
            let ground = Ground::new(FEW);
            ground.blocks.goes_on.set(true);
            let indices: Vec<u64> = (0..1000).map(|number| number * 37).collect();
            let tree = ground.plant(Tree::EMPTY, 1, 3, &indices).await;
            let rotten = page_at(&ground, tree, level, 740).await;
            ground.disk.rot(rotten.pba);
            ground.pages.purge();

            let killed = RefCell::new(Vec::new());
            let mut merge =
                ground.merge(tree, 2, 3, |pointer, _| killed.borrow_mut().push(pointer)).await;
            let new = ground.value(Epoch(2));
            merge.put(740, new).await.expect("goes on");
            merge.clear(750..760).await.expect("goes on");
            let tree = merge.finish().await.expect("written");
            // What the page pointed at nobody knows, so it is not given up.
            assert!(killed.take().iter().all(|pointer| pointer.kind == Kind::Page));

            let lost = Pointer::lost(rotten.pba, Epoch(2));
            let found = async |tree, index| find(&ground.pages, Class::Map, &tree, index).await;
            assert_eq!(found(tree, 740).await, Ok(new));
            assert_eq!(found(tree, 755).await, Ok(Pointer::HOLE));
            assert_eq!(found(tree, 741).await, Ok(lost));
            assert_eq!(found(tree, 777).await.map(|it| it.is_lost()), Ok(level == 2));
            let mut run = [Pointer::HOLE; 34];
            let read = find_run(&ground.pages, Class::Map, &tree, 720, &mut run).await;
            assert_eq!((read, run[20], run[21]), (Ok(()), new, lost));

            let given_up = |items: &[Item]| -> u64 {
                let lengths = items.iter().filter_map(|item| match item {
                    Item::Damaged { indices, damage, .. } => {
                        assert_eq!((damage.pba, damage.what), (rotten.pba, What::GivenUp));
                        Some(indices.end - indices.start)
                    }
                    _ => None,
                });
                lengths.sum()
            };
            let all = span(level) - 11;
            assert_eq!(given_up(&ground.items(tree, None).await), all);
            assert_eq!(given_up(&ground.items(tree, Some(Epoch(2))).await), 0);

            let tree = ground.plant(tree, 3, 3, &[741]).await;
            assert!(found(tree, 741).await.is_ok_and(|pointer| pointer.kind == Kind::Data));
            assert_eq!(found(tree, 742).await, Ok(lost));
            let mut merge = ground.merge(tree, 4, 3, |_, _| ()).await;
            merge.clear(0..span(3)).await.expect("whole");
            let tree = merge.finish().await.expect("written");
            assert_eq!(ground.items(tree, None).await, []);
        });
    }
}
