//! A path that loses, doubles and reorders frames: what it costs.

use std::time::Duration;

use block_core::Op;

use crate::world::{Load, Setup, Speed, World};

/// One frame in a hundred is lost, one comes twice, one is overtaken, in both
/// directions. A lost frame cost a time-out, in which its slot did nothing.
#[test]
fn one_lost_frame_in_a_hundred_costs_less_than_a_tenth() {
    for (op, sectors) in [(Op::Read, 8), (Op::Write, 8), (Op::Read, 64), (Op::Write, 64)] {
        let load = Load { depth: 32, op, sectors };
        let time = Duration::from_millis(200);
        let [(clean, _), (foul, slowest)] = [None, Some("loss=1%,reorder=1%,duplicate=1%,seed=7")]
            .map(|faults| {
                let faults = faults.map(|faults| faults.parse().expect("faults"));
                // A device that is not the narrowest place: then what a slot
                // waits for a lost frame is missing in the end.
                let speed = Speed::AtOnce(Duration::from_micros(100));
                let mut world =
                    World::new(Setup { fronts: 1, buffers: 256, speed, faults }, |_| load);
                let served = world.served(time, |_| {})[0];
                (served, world.fronts[0].guest.slowest)
            });
        println!("{op:?} of {sectors} sectors: {clean} clean, {foul} under loss, {slowest:?}");
        assert!(foul * 10 >= clean * 9, "{op:?} of {sectors} sectors: {foul} of {clean}");
        assert!(slowest < Duration::from_secs(1), "{op:?} of {sectors} sectors: {slowest:?}");
    }
}
