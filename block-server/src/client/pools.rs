//! What is asked about pools and their keys.

use hyper::Method;
use hyper::body::Bytes;

use super::{Client, ClientError, body, escape, parse};
use crate::api::{AddWay, CheckInfo, CreatePool, KeysInfo, PoolInfo, SetSchedule, StartCheck};

impl Client {
    /// All pools, by their devices' names.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn pools(&self) -> Result<Vec<PoolInfo>, ClientError> {
        parse(&self.ask(Method::GET, "/pools", Bytes::new())?)
    }

    /// One pool.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn pool(&self, device: &str) -> Result<PoolInfo, ClientError> {
        parse(&self.ask(Method::GET, &pool_path(device, ""), Bytes::new())?)
    }

    /// Makes a device a pool.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create_pool(&self, pool: &CreatePool) -> Result<PoolInfo, ClientError> {
        parse(&self.ask(Method::POST, "/pools", body(pool)?)?)
    }

    /// Lets a pool have what its device has grown by.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn grow_pool(&self, device: &str) -> Result<PoolInfo, ClientError> {
        parse(&self.ask(Method::POST, &pool_path(device, "/grow"), Bytes::new())?)
    }

    /// Begins a check of everything in a pool.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn start_check(&self, device: &str, how: &StartCheck) -> Result<CheckInfo, ClientError> {
        parse(&self.ask(Method::POST, &pool_path(device, "/check"), body(how)?)?)
    }

    /// How far the check is that runs, or what the last one found.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn check(&self, device: &str) -> Result<CheckInfo, ClientError> {
        parse(&self.ask(Method::GET, &pool_path(device, "/check"), Bytes::new())?)
    }

    /// Sets how often the server checks a pool by itself.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn schedule_check(&self, device: &str, to: &SetSchedule) -> Result<PoolInfo, ClientError> {
        let path = pool_path(device, "/check/schedule");
        parse(&self.ask(Method::PUT, &path, body(to)?)?)
    }

    /// What unlocks a pool, and its domains' keys.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn keys(&self, device: &str) -> Result<KeysInfo, ClientError> {
        parse(&self.ask(Method::GET, &pool_path(device, "/keys"), Bytes::new())?)
    }

    /// Lets another secret unlock a pool.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn add_way(&self, device: &str, way: &AddWay) -> Result<KeysInfo, ClientError> {
        parse(&self.ask(Method::POST, &pool_path(device, "/keys"), body(way)?)?)
    }

    /// Lets a secret unlock a pool no more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn remove_way(&self, device: &str, name: &str) -> Result<KeysInfo, ClientError> {
        let path = pool_path(device, &format!("/keys/{}", escape(name)));
        parse(&self.ask(Method::DELETE, &path, Bytes::new())?)
    }

    /// Gives a domain a new key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn rotate_key(&self, device: &str, domain: &str) -> Result<KeysInfo, ClientError> {
        let path = pool_path(device, &format!("/domains/{}/rotate", escape(domain)));
        parse(&self.ask(Method::POST, &path, Bytes::new())?)
    }

    /// Destroys a domain's keys.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn erase_key(&self, device: &str, domain: &str) -> Result<KeysInfo, ClientError> {
        let path = pool_path(device, &format!("/domains/{}/erase", escape(domain)));
        parse(&self.ask(Method::POST, &path, Bytes::new())?)
    }
}

fn pool_path(device: &str, below: &str) -> String {
    format!("/pools/{}{below}", escape(device))
}
