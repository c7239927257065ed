use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Change {
    Put,
    PutHole,
    PutSame,
    Look,
    Clear(u64),
}

/// Changes at ascending places: the distance from the last one, and what.
type Round = (u8, bool, Vec<(u64, Change)>);

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => Just(Change::Put),
        1 => Just(Change::PutHole),
        1 => Just(Change::PutSame),
        1 => Just(Change::Look),
        2 => distance().prop_map(Change::Clear),
    ]
}

fn distance() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..3u64,
        3 => 100..300u64,
        2 => (1..4u64).prop_map(|pages| pages * 128),
        1 => (1..3u64).prop_map(|pages| pages * 16_384),
        1 => 16_000..40_000u64,
        1 => 1u64 << 21..1u64 << 22,
    ]
}

fn round() -> impl Strategy<Value = Round> {
    (0..=4u8, any::<bool>(), prop::collection::vec((distance(), change()), 0..40))
}

/// What there is, beside the tree.
#[derive(Default)]
struct Model {
    values: BTreeMap<u64, Pointer>,
    pages: BTreeSet<(u64, u8)>,
    killed_values: BTreeSet<u32>,
}

impl Model {
    fn replace(&mut self, index: u64, pointer: Pointer) {
        let was = if pointer.is_hole() {
            self.values.remove(&index)
        } else {
            self.values.insert(index, pointer)
        };
        if let Some(was) = was {
            self.killed_values.insert(was.seal.seq);
        }
    }

    fn clear(&mut self, range: std::ops::Range<u64>) {
        let inside: Vec<u64> = self.values.range(range).map(|(index, _)| *index).collect();
        inside.into_iter().for_each(|index| self.replace(index, Pointer::HOLE));
    }
}

async fn play(ground: &Ground, rounds: Vec<Round>) {
    let (mut model, mut tree) = (Model::default(), Tree::EMPTY);
    let mut history = vec![(Tree::EMPTY, BTreeMap::new())];
    for (birth, (least, ahead, changes)) in (1..).zip(rounds) {
        let taken = ground.blocks.taken.borrow().len();
        let (places, end) = places(changes);
        let height = Tree::height_for(end).max(least);
        let killed = RefCell::new(Vec::new());
        let kill = |old, level| killed.borrow_mut().push((old, level));
        let mut merge = ground.merge(tree, birth, height, kill).await;
        let mut expected = 0;
        for &(index, change) in &places {
            while ahead && expected < places.len() && merge.expect(places[expected].0) {
                expected += 1;
            }
            let before = model.values.get(&index).copied().unwrap_or(Pointer::HOLE);
            let pointer = match change {
                Change::Put => ground.value(Epoch(birth)),
                Change::PutHole => Pointer::HOLE,
                Change::PutSame => before,
                Change::Look => {
                    assert_eq!(merge.value(index).await.expect("whole"), before);
                    continue;
                }
                Change::Clear(count) => {
                    merge.clear(index..index + count).await.expect("whole");
                    model.clear(index..index + count);
                    continue;
                }
            };
            merge.put(index, pointer).await.expect("whole");
            model.replace(index, pointer);
        }
        let least = tree.height().max(height);
        tree = merge.finish().await.expect("written");
        assert_eq!(tree.height(), least);
        if birth % 2 == 0 {
            ground.pages.purge();
        }
        check_finds(ground, &tree, &model).await;
        check_walks(ground, tree, &model).await;
        history.push((tree, model.values.clone()));
        for (former, values) in &history {
            check_diff(ground, [tree, *former], [&model.values, values]).await;
        }
        check_kills(ground, tree, &mut model, killed.into_inner(), taken).await;
    }
}

fn places(changes: Vec<(u64, Change)>) -> (Vec<(u64, Change)>, u64) {
    let mut at = 0;
    let place = |(distance, change)| {
        let here = at + distance;
        at = here + if let Change::Clear(count) = change { count } else { 1 };
        (here, change)
    };
    let places = changes.into_iter().map(place).collect();
    (places, at)
}

async fn check_finds(ground: &Ground, tree: &Tree, model: &Model) {
    let beside = |index: u64| [index.saturating_sub(1), index, index + 1, index + 128];
    let indices = model.values.keys().copied().flat_map(beside).chain([tree.capacity()]);
    for index in indices {
        let expected = model.values.get(&index).copied().unwrap_or(Pointer::HOLE);
        let found = find(&ground.pages, Class::Map, tree, index).await;
        assert_eq!(found, Ok(expected), "{index}");
        let cached = find_cached(&ground.pages, Class::Map, tree, index);
        assert_eq!(cached.unwrap_or(Ok(expected)), Ok(expected));
        assert!(cached.is_some() || ground.few, "all pages fit");
        let mut run = [Pointer { pba: Pba(1), ..Pointer::HOLE }; 34];
        let found = find_run(&ground.pages, Class::Map, tree, index, &mut run).await;
        assert_eq!(found, Ok(()));
        for (index, found) in (index..).zip(run) {
            assert_eq!(found, model.values.get(&index).copied().unwrap_or(Pointer::HOLE));
        }
    }
}

async fn check_walks(ground: &Ground, tree: Tree, model: &Model) {
    let all = ground.items(tree, None).await;
    let values = all.iter().filter_map(|item| match item {
        Item::Value { index, pointer } => Some((*index, *pointer)),
        _ => None,
    });
    assert!(values.eq(model.values.iter().map(|(index, pointer)| (*index, *pointer))));
    check_order(&all, tree);
    let bound = Epoch(model.values.len() as u32 % 5);
    let young = all.iter().filter(|item| match item {
        Item::Value { pointer, .. } | Item::Page { pointer, .. } => pointer.birth > bound,
        Item::Damaged { .. } => true,
    });
    assert!(ground.items(tree, Some(bound)).await.iter().eq(young));
    // Every fourth time that a cursor can be kept, the walk begins there anew.
    let (mut items, mut from, mut kept) = (Vec::new(), 0, 0);
    let anew = |from| Walk::new(Rc::clone(&ground.pages), Class::Map, tree, from, None);
    let mut walk = anew(from);
    while let Some(item) = walk.next().await {
        items.push(item);
        if let Some(cursor) = walk.cursor() {
            assert!(cursor >= from);
            from = cursor;
            kept += 1;
            if kept % 4 == 0 {
                walk = anew(from);
            }
        }
    }
    assert_eq!(items, all);
}

/// A page comes after everything that has its indices, and before the rest.
fn check_order(items: &[Item], tree: Tree) {
    let mut at = 0;
    for item in items {
        match item {
            Item::Value { index, .. } => {
                assert!(*index >= at);
                at = index + 1;
            }
            Item::Page { level, first, .. } => {
                assert!(first + span(*level) >= at && *level <= tree.height());
                at = first + span(*level);
            }
            Item::Damaged { .. } => panic!("nothing is damaged: {item:?}"),
        }
    }
}

/// Every range that is told differs, ends where it must, and none is missing.
async fn check_diff(ground: &Ground, trees: [Tree; 2], values: [&BTreeMap<u64, Pointer>; 2]) {
    let [one, other] = values;
    let differs = |index: &u64| {
        one.get(index).map(|pointer| pointer.seal) != other.get(index).map(|pointer| pointer.seal)
    };
    let indices: BTreeSet<u64> = one.keys().chain(other.keys()).copied().collect();
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    for index in indices.into_iter().filter(differs) {
        match ranges.last_mut() {
            Some(range) if range.end == index => range.end += 1,
            _ => ranges.push(index..index + 1),
        }
    }
    let mut diff = Diff::new(Rc::clone(&ground.pages), Class::Map, trees);
    for range in &ranges {
        assert_eq!(diff.next().await, Some(Difference::Changed(range.clone())));
    }
    assert_eq!(diff.next().await, None);
    assert_eq!(diff.next().await, None);
    // From the middle on and in short ranges it is the same, cut.
    let start = ranges.get(ranges.len() / 2).map_or(0, |range| range.start + 1);
    let short = ranges.iter().filter(|range| range.end > start).flat_map(|range| {
        let (first, end) = (range.start.max(start), range.end);
        (first..end).step_by(3).map(move |at| at..end.min(at + 3))
    });
    let mut diff = Diff::new(Rc::clone(&ground.pages), Class::Map, trees).within(start, 3);
    for range in short {
        assert_eq!(diff.next().await, Some(Difference::Changed(range)));
    }
    assert_eq!(diff.next().await, None);
}

/// What was killed is what is not there any more, and what was taken is there.
async fn check_kills(
    ground: &Ground,
    tree: Tree,
    model: &mut Model,
    killed: Vec<(Pointer, u8)>,
    taken: usize,
) {
    let pages: BTreeSet<(u64, u8)> = ground
        .items(tree, None)
        .await
        .into_iter()
        .filter_map(|item| match item {
            Item::Page { pointer, level, .. } => Some((pointer.pba.0, level)),
            _ => None,
        })
        .collect();
    let values = killed.iter().filter(|(_, level)| *level == 0).map(|(old, _)| old.seal.seq);
    let mut values: Vec<u32> = values.collect();
    values.sort_unstable();
    assert!(values.into_iter().eq(std::mem::take(&mut model.killed_values)));
    let gone = killed.iter().filter(|(_, level)| *level > 0).map(|(old, l)| (old.pba.0, *l));
    let mut gone: Vec<(u64, u8)> = gone.collect();
    gone.sort_unstable();
    assert!(gone.into_iter().eq(model.pages.difference(&pages).copied()));
    let born = pages.difference(&model.pages).map(|(pba, _)| *pba);
    assert!(born.eq(ground.blocks.taken.borrow()[taken..].iter().copied()));
    model.pages = pages;
}

/// A volume is trimmed from its first block on in the checkpoint that also
/// makes its tree higher: the pages above the old root are not part of what
/// goes, and none is written for nothing.
#[test]
fn a_tree_that_grows_while_it_is_cleared_kills_what_it_had() {
    run(async {
        for (range, left) in [(0..128, 1), (0..16_384, 0), (0..1 << 21, 0)] {
            let ground = Ground::new(FEW);
            let tree = ground.plant(Tree::EMPTY, 1, 2, &[5, 6, 700]).await;
            let taken = ground.blocks.taken.borrow().len();
            let killed = RefCell::new(Vec::new());
            let kill = |_, level| killed.borrow_mut().push(level);
            let mut merge = ground.merge(tree, 2, 3, kill).await;
            merge.clear(range).await.expect("whole");
            let tree = merge.finish().await.expect("written");
            let items = ground.items(tree, None).await;
            assert_eq!(items.len(), if left == 1 { 4 } else { 0 });
            let mut killed = killed.into_inner();
            killed.sort_unstable();
            let expected: &[u8] = if left == 1 { &[0, 0, 1, 2] } else { &[0, 0, 0, 1, 1, 2] };
            assert_eq!(killed, expected);
            assert_eq!(ground.blocks.taken.borrow().len() - taken, 2 * left);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rounds of changes as checkpoints make them: with few buffers and with
    /// many, with pages read ahead and without, with trees that grow.
    #[test]
    fn trees_are_what_a_map_says(
        rounds in prop::collection::vec(round(), 1..6),
        few: bool,
    ) {
        run(async move { play(&Ground::new(if few { FEW } else { 1000 }), rounds).await });
    }
}
