//! What is counted, a row each.

use block_core::Op;
use clap::ValueEnum;

use crate::count::Side;

/// A kind of request, and where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// Front and worker in one turn.
    FusedRead,
    /// The same.
    FusedWrite,
    /// Front and server with sockets between them.
    UdpRead,
    /// The same.
    UdpWrite,
}

impl Row {
    pub(crate) const ALL: [Self; 4] =
        [Self::FusedRead, Self::FusedWrite, Self::UdpRead, Self::UdpWrite];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FusedRead => "fused, read",
            Self::FusedWrite => "fused, write",
            Self::UdpRead => "udp, read",
            Self::UdpWrite => "udp, write",
        }
    }

    pub(crate) fn op(self) -> Op {
        match self {
            Self::FusedRead | Self::UdpRead => Op::Read,
            Self::FusedWrite | Self::UdpWrite => Op::Write,
        }
    }

    pub(crate) fn is_fused(self) -> bool {
        matches!(self, Self::FusedRead | Self::FusedWrite)
    }

    /// Whose turns there are; fused, the front's are also the worker's.
    pub(crate) fn sides(self) -> &'static [Side] {
        if self.is_fused() { &[Side::Front] } else { &[Side::Front, Side::Server] }
    }
}
