//! What the control socket shows of a server, as Prometheus reads it: text format 0.0.4.
//! Nothing is counted for it: every scrape asks what `GET /server`, `/volumes` and
//! `/pools` ask.
//!
//! Names begin with `vrio_` and say their unit: seconds, bytes, a ratio from 0 to 1.
//! What ends in `_total` only rises until the server, or the pool, is started anew; what a
//! device counts by itself, never falls.

mod devices;
mod family;
mod pools;
mod volumes;

use crate::api::{PoolInfo, ServerInfo, VolumeInfo};
use family::Page;

/// What is said about a server.
#[derive(Debug)]
pub struct State {
    /// `GET /server`.
    pub server: ServerInfo,
    /// `GET /volumes`.
    pub volumes: Vec<VolumeInfo>,
    /// `GET /pools`.
    pub pools: Vec<PoolInfo>,
}

impl State {
    /// The page that Prometheus reads.
    ///
    /// # Errors
    /// The encoder's, if a figure has a name that is none: a mistake in here.
    pub fn page(&self) -> Result<String, prometheus::Error> {
        let mut page = Page::default();
        let version = [("version", &self.server.version[..])];
        page.gauge("vrio_build_info", "The server's version.", [(&version[..], 1.0)]);
        let workers = self.server.workers.len() as f64;
        page.gauge("vrio_workers", "Polling threads.", [(&[][..], workers)]);
        volumes::add(&mut page, &self.volumes);
        devices::add(&mut page, &self.server.devices);
        pools::add(&mut page, &self.pools);
        page.text()
    }
}
