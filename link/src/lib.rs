//! The vRIO link: requests become frames, frames become requests.

pub mod path;

pub use path::{Guest, Part, Path, Token, VolumeHandle};
