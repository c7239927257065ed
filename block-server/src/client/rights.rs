//! Who may have which volumes.

use hyper::Method;
use hyper::body::Bytes;

use super::{Client, ClientError, body, escape, parse};
use crate::api::{Authorize, RightsInfo};

impl Client {
    /// What keys are good for.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn rights(&self) -> Result<RightsInfo, ClientError> {
        parse(&self.ask(Method::GET, "/rights", Bytes::new())?)
    }

    /// Gives a key a right.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn authorize(&self, key: &str, right: &Authorize) -> Result<RightsInfo, ClientError> {
        parse(&self.ask(Method::PUT, &format!("/rights/{}", escape(key)), body(right)?)?)
    }

    /// Takes all rights of a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn revoke(&self, key: &str) -> Result<RightsInfo, ClientError> {
        parse(&self.ask(Method::DELETE, &format!("/rights/{}", escape(key)), Bytes::new())?)
    }
}
