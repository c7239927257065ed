use super::*;

/// What it costs to look up a block, by how many leaves of the map are in
/// use, and to merge a change: nanoseconds of CPU. Figures, not a test: `cargo test --release -p
/// interpose what_trees_cost -- --ignored --nocapture`.
#[test]
#[ignore = "prints what things cost"]
fn what_trees_cost() {
    for leaves in [512u64, 16_384] {
        let ground = Ground::new(leaves as usize + 600);
        run(async move {
            let indices: Vec<u64> = (0..leaves * 8).map(|number| number * 16).collect();
            let begun = cpu();
            let tree = ground.plant(Tree::EMPTY, 1, 4, &indices).await;
            let merged = (cpu() - begun) / indices.len() as u64;
            let begun = cpu();
            let again = ground.plant(tree, 2, 4, &indices).await;
            let replaced = (cpu() - begun) / indices.len() as u64;
            for index in (0..leaves * 128).step_by(128) {
                find(&ground.pages, Class::Map, &again, index).await.expect("whole");
            }
            for length in [1, 8, 32] {
                const TIMES: u64 = 1_000_000;
                let mut out = [Pointer::HOLE; 32];
                let (mut at, mut found) = (1u64, 0);
                let begun = cpu();
                for _ in 0..TIMES {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let start = (at >> 33) % (leaves * 128);
                    let out = &mut out[..length];
                    let cached = find_run_cached(&ground.pages, Class::Map, &again, start, out);
                    assert_eq!(cached, Some(Ok(())));
                    found += usize::from(!out[0].is_hole());
                }
                let search = (cpu() - begun) / TIMES;
                println!("{leaves} leaves, {length} blocks: {search} ns a search ({found} found)");
            }
            println!(
                "{leaves} leaves: {merged} ns a new value, {replaced} ns a replaced one, 8 a leaf"
            );
        });
    }
}

/// Nanoseconds that this thread had a CPU.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}
