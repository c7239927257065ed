//! What the wires ask of the kernel that no crate of ours asks safely.
#![allow(unsafe_code)]

pub(super) mod datagrams;
pub(super) mod interface;
pub(super) mod packet_socket;
pub(super) mod shared_pages;
