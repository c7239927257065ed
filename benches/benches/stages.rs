//! How long each stage of a request's way takes: nanoseconds of one operation.

use std::time::Duration;

use benches::meter::Meter;
use benches::stage::{OPERATIONS, Stage};
use criterion::{Criterion, criterion_group, criterion_main};

fn stages(criterion: &mut Criterion) {
    for stage in Stage::ALL {
        // Once, and only for what is asked for: criterion comes back for each sample.
        let mut ready = None;
        criterion.bench_function(stage.name, |bencher| {
            let round = ready.get_or_insert_with(|| stage.set_up().expect("it can be had"));
            bencher.iter_custom(|operations| {
                let rounds = operations.div_ceil(OPERATIONS as u64);
                let mut meter = Meter::default();
                for _ in 0..rounds {
                    round(&mut meter).expect("it works");
                }
                let done = rounds * OPERATIONS as u64;
                meter.time.mul_f64(operations as f64 / done as f64)
            });
        });
    }
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = stages
}
criterion_main!(all);
