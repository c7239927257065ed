//! Pools: their space, and what guests did with them.

use super::family::Page;
use crate::api::{LastCheck, PoolContent, PoolInfo, PoolState};

type Figure<T> = (&'static str, &'static str, fn(&T) -> f64);

const GAUGES: [Figure<PoolContent>; 11] = [
    ("vrio_pool_free_bytes", "What nobody uses.", |pool| pool.free.bytes() as f64),
    ("vrio_pool_data_bytes", "Blocks of guests, each once.", |pool| pool.data.bytes() as f64),
    ("vrio_pool_metadata_bytes", "Pages that say where they are.", |pool| {
        pool.metadata.bytes() as f64
    }),
    ("vrio_pool_journal_bytes", "The journal.", |pool| pool.journal.bytes() as f64),
    ("vrio_pool_referenced_bytes", "What volumes and snapshots refer to.", |pool| {
        pool.referenced.bytes() as f64
    }),
    ("vrio_pool_provisioned_bytes", "The sizes of all volumes.", |pool| {
        pool.provisioned.bytes() as f64
    }),
    ("vrio_pool_full", "1 if writes wait, or fail, for want of room.", |pool| {
        f64::from(u8::from(pool.full))
    }),
    ("vrio_pool_volumes", "Volumes.", |pool| pool.volumes as f64),
    ("vrio_pool_snapshots", "Snapshots.", |pool| pool.snapshots as f64),
    ("vrio_pool_index_blocks", "Blocks that the index for sharing knows.", |pool| {
        pool.index[0] as f64
    }),
    ("vrio_pool_index_capacity_blocks", "Blocks that it has room for.", |pool| {
        pool.index[1] as f64
    }),
];

const BLOCK: f64 = block_core::unit::BLOCK_SIZE as f64;

/// What [`PoolContent::since`] counts, by its name there, and what one of them is.
const COUNTERS: [(&str, &str, &str, f64); 7] = [
    ("checkpoints", "vrio_pool_checkpoints_total", "Checkpoints.", 1.0),
    ("written", "vrio_pool_written_bytes_total", "Blocks that guests wrote.", BLOCK),
    ("of them shared", "vrio_pool_shared_bytes_total", "Written, and stored already.", BLOCK),
    ("zeroes", "vrio_pool_zeroed_bytes_total", "Written, and all zeroes.", BLOCK),
    ("read", "vrio_pool_read_bytes_total", "Blocks that guests read.", BLOCK),
    ("of them cached", "vrio_pool_cache_hit_bytes_total", "Read, and found in memory.", BLOCK),
    ("damaged", "vrio_pool_damaged_blocks_total", "Blocks that were not as written.", 1.0),
];

const CHECKS: [Figure<LastCheck>; 2] = [
    ("vrio_pool_check_wrong", "What the last check found to be wrong.", |last| {
        last.check.wrong as f64
    }),
    ("vrio_pool_check_end_timestamp_seconds", "When it ended, since 1970.", |last| {
        last.ended as f64
    }),
];

pub(super) fn add(page: &mut Page, pools: &[PoolInfo]) {
    let labels: Vec<_> = pools.iter().map(|pool| [("device", &pool.device[..])]).collect();
    let each = || labels.iter().map(|labels| &labels[..]).zip(pools);
    let states = pools.iter().flat_map(|pool| {
        let names = ["open", "read-only", "locked"];
        let states = [PoolState::Open, PoolState::ReadOnly, PoolState::Locked];
        names.into_iter().zip(states).map(|(name, state)| {
            let labels = [("device", &pool.device[..]), ("state", name)];
            (labels, f64::from(u8::from(pool.state == state)))
        })
    });
    let states: Vec<_> = states.collect();
    let samples = states.iter().map(|(labels, value)| (&labels[..], *value));
    page.gauge("vrio_pool_state", "1 for the state in which the pool is.", samples);
    let sizes = each().map(|(labels, pool)| (labels, pool.size.bytes() as f64));
    page.gauge("vrio_pool_size_bytes", "Size of the pool.", sizes);
    let open = || each().filter_map(|(labels, pool)| Some((labels, pool.content.as_ref()?)));
    for (name, help, figure) in GAUGES {
        page.gauge(name, help, open().map(|(labels, pool)| (labels, figure(pool))));
    }
    for (what, name, help, unit) in COUNTERS {
        let samples = open().filter_map(|(labels, pool)| {
            let figure = pool.since.iter().find(|figure| figure.name == what)?;
            Some((labels, figure.blocks as f64 * unit))
        });
        page.counter(name, help, samples);
    }
    let checked = || each().filter_map(|(labels, pool)| Some((labels, pool.checks.last.as_ref()?)));
    for (name, help, figure) in CHECKS {
        page.gauge(name, help, checked().map(|(labels, last)| (labels, figure(last))));
    }
}
