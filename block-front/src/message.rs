//! vhost-user messages, understood: every number that stands in a message has
//! its place and every descriptor its owner.

use std::fs::File;
use std::os::fd::OwnedFd;

use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserInflight, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::config_space::CONFIG_LIMIT;
use crate::guest_memory::{MAX_REGIONS, RegionSpec};
use crate::in_flight::AreaSpec;
use crate::inbox::Frame;
use crate::ring::RingAddresses;

/// `SET_VRING_KICK` and its like: the queue's index, and that no descriptor
/// came along.
const INDEX_MASK: u64 = 0xff;
const NO_FD: u64 = 1 << 8;

/// Most regions that `SET_MEM_TABLE` carries.
const TABLE_REGIONS: usize = 8;
const _: () = assert!(TABLE_REGIONS <= MAX_REGIONS);

/// Bytes of an in-flight area's description without padding: two u64, two u16.
const AREA_BYTES: usize = 20;

/// Why a message makes no sense.
#[derive(Debug, Error)]
pub(crate) enum MessageError {
    #[error("message {0} is not spoken here")]
    Unknown(u32),
    #[error("message {request:?} has {bytes} bytes")]
    Length { request: FrontendReq, bytes: usize },
    #[error("message {request:?} comes with {fds} descriptors")]
    Descriptors { request: FrontendReq, fds: usize },
    #[error(
        "it shares no memory with this process; give QEMU's memory backend share=on \
         (-object memory-backend-memfd,id=mem,size=...,share=on -machine memory-backend=mem)"
    )]
    NotShared,
}

/// A message of the front-end.
#[derive(Debug)]
pub(crate) enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    GetMaxMemSlots,
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig { offset: u32, bytes: Vec<u8> },
    SetMemTable(Vec<(RegionSpec, File)>),
    AddMemReg(RegionSpec, File),
    RemMemReg(RegionSpec),
    SetVringNum { index: u32, entries: u32 },
    SetVringBase { index: u32, base: u32 },
    GetVringBase { index: u32 },
    SetVringAddr { index: u32, addresses: RingAddresses },
    SetVringEnable { index: u32, on: bool },
    SetVringKick { index: u32, fd: Option<OwnedFd> },
    SetVringCall { index: u32, fd: Option<OwnedFd> },
    SetVringErr,
    SetBackendReqFd(OwnedFd),
    GetInflightFd { queues: u16, entries: u16 },
    SetInflightFd(AreaSpec, File),
}

impl Message {
    /// Understands a message. Descriptors that it has no use for are closed.
    pub(crate) fn parse(frame: Frame) -> Result<Self, MessageError> {
        let request = FrontendReq::try_from(frame.request)
            .map_err(|()| MessageError::Unknown(frame.request))?;
        let body = Body { request, bytes: frame.body, fds: frame.fds };
        Ok(match request {
            FrontendReq::GET_FEATURES => body.empty(Self::GetFeatures)?,
            FrontendReq::SET_OWNER => body.empty(Self::SetOwner)?,
            FrontendReq::RESET_OWNER => body.empty(Self::ResetOwner)?,
            FrontendReq::GET_PROTOCOL_FEATURES => body.empty(Self::GetProtocolFeatures)?,
            FrontendReq::GET_QUEUE_NUM => body.empty(Self::GetQueueNum)?,
            FrontendReq::GET_MAX_MEM_SLOTS => body.empty(Self::GetMaxMemSlots)?,
            FrontendReq::SET_FEATURES => Self::SetFeatures(body.number()?),
            FrontendReq::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(body.number()?),
            FrontendReq::GET_CONFIG => body.get_config()?,
            FrontendReq::SET_CONFIG => body.set_config()?,
            FrontendReq::SET_MEM_TABLE => body.memory_table()?,
            FrontendReq::ADD_MEM_REG => {
                let (region, [file]) = body.region()?;
                Self::AddMemReg(region, file)
            }
            FrontendReq::REM_MEM_REG => body.removed_region()?,
            FrontendReq::SET_VRING_NUM => {
                let (index, entries) = body.ring_state()?;
                Self::SetVringNum { index, entries }
            }
            FrontendReq::SET_VRING_BASE => {
                let (index, base) = body.ring_state()?;
                Self::SetVringBase { index, base }
            }
            FrontendReq::GET_VRING_BASE => Self::GetVringBase { index: body.ring_state()?.0 },
            FrontendReq::SET_VRING_ENABLE => {
                let (index, on) = body.ring_state()?;
                Self::SetVringEnable { index, on: on != 0 }
            }
            FrontendReq::SET_VRING_ADDR => body.ring_addresses()?,
            FrontendReq::SET_VRING_KICK => {
                let (index, fd) = body.ring_fd()?;
                Self::SetVringKick { index, fd }
            }
            FrontendReq::SET_VRING_CALL => {
                let (index, fd) = body.ring_fd()?;
                Self::SetVringCall { index, fd }
            }
            FrontendReq::SET_VRING_ERR => body.ring_fd().map(|_| Self::SetVringErr)?,
            FrontendReq::SET_BACKEND_REQ_FD => body.back_channel()?,
            FrontendReq::GET_INFLIGHT_FD => {
                let AreaSpec { queues, entries, .. } = body.area()?;
                Self::GetInflightFd { queues, entries }
            }
            FrontendReq::SET_INFLIGHT_FD => body.set_area()?,
            _ => return Err(MessageError::Unknown(frame.request)),
        })
    }
}

/// A message whose request is known.
struct Body {
    request: FrontendReq,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Body {
    fn length(&self) -> MessageError {
        MessageError::Length { request: self.request, bytes: self.bytes.len() }
    }

    fn descriptors(&self) -> MessageError {
        MessageError::Descriptors { request: self.request, fds: self.fds.len() }
    }

    fn empty(&self, message: Message) -> Result<Message, MessageError> {
        if self.bytes.is_empty() { Ok(message) } else { Err(self.length()) }
    }

    /// The body as one structure, exactly.
    fn exactly<T: ByteValued + Default>(&self) -> Result<T, MessageError> {
        if self.bytes.len() == size_of::<T>() { self.beginning() } else { Err(self.length()) }
    }

    /// The structure that the body begins with.
    fn beginning<T: ByteValued + Default>(&self) -> Result<T, MessageError> {
        let bytes = self.bytes.get(..size_of::<T>()).ok_or_else(|| self.length())?;
        let mut value = T::default();
        value.as_mut_slice().copy_from_slice(bytes);
        Ok(value)
    }

    fn number(&self) -> Result<u64, MessageError> {
        Ok(self.exactly::<VhostUserU64>()?.value)
    }

    fn ring_state(&self) -> Result<(u32, u32), MessageError> {
        let state: VhostUserVringState = self.exactly()?;
        Ok((state.index, state.num))
    }

    fn ring_addresses(&self) -> Result<Message, MessageError> {
        let at: VhostUserVringAddr = self.exactly()?;
        let addresses =
            RingAddresses { descriptors: at.descriptor, available: at.available, used: at.used };
        Ok(Message::SetVringAddr { index: at.index, addresses })
    }

    fn ring_fd(mut self) -> Result<(u32, Option<OwnedFd>), MessageError> {
        let number = self.number()?;
        let wanted = usize::from(number & NO_FD == 0);
        if self.fds.len() != wanted {
            return Err(self.descriptors());
        }
        Ok(((number & INDEX_MASK) as u32, self.fds.pop()))
    }

    fn back_channel(mut self) -> Result<Message, MessageError> {
        match (self.fds.pop(), self.fds.is_empty()) {
            (Some(fd), true) => Ok(Message::SetBackendReqFd(fd)),
            _ => Err(self.descriptors()),
        }
    }

    /// The front-end may leave out the padding that C puts at the end.
    fn area(&self) -> Result<AreaSpec, MessageError> {
        let bytes = self.bytes.len();
        if bytes != AREA_BYTES && bytes != size_of::<VhostUserInflight>() {
            return Err(self.length());
        }
        let mut area = VhostUserInflight::default();
        area.as_mut_slice()[..bytes].copy_from_slice(&self.bytes);
        let VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = area;
        Ok(AreaSpec {
            len: mmap_size,
            offset: mmap_offset,
            queues: num_queues,
            entries: queue_size,
        })
    }

    fn set_area(mut self) -> Result<Message, MessageError> {
        match (self.fds.pop(), self.fds.is_empty()) {
            (Some(file), true) => Ok(Message::SetInflightFd(self.area()?, file.into())),
            _ => Err(self.descriptors()),
        }
    }

    fn get_config(&self) -> Result<Message, MessageError> {
        let config: VhostUserConfig = self.beginning()?;
        let VhostUserConfig { offset, size, flags } = config;
        // The body has room for the answer: the requested size again.
        if self.bytes.len() - size_of::<VhostUserConfig>() != size as usize {
            return Err(self.length());
        }
        Ok(Message::GetConfig { offset, size, flags })
    }

    fn set_config(mut self) -> Result<Message, MessageError> {
        let config: VhostUserConfig = self.beginning()?;
        let bytes = self.bytes.split_off(size_of::<VhostUserConfig>());
        if bytes.len() != config.size as usize || bytes.len() > CONFIG_LIMIT {
            return Err(self.length());
        }
        Ok(Message::SetConfig { offset: config.offset, bytes })
    }

    fn memory_table(mut self) -> Result<Message, MessageError> {
        let table: VhostUserMemory = self.beginning()?;
        let regions = table.num_regions as usize;
        let bytes = self.bytes.split_off(size_of::<VhostUserMemory>());
        let (chunks, rest) = bytes.as_chunks::<{ size_of::<VhostUserMemoryRegion>() }>();
        if regions > TABLE_REGIONS || chunks.len() != regions || !rest.is_empty() {
            return Err(self.length());
        }
        if regions == 0 || self.fds.is_empty() {
            return Err(MessageError::NotShared);
        }
        if self.fds.len() != regions {
            return Err(self.descriptors());
        }
        let specs = chunks.iter().map(|chunk| {
            let mut region = VhostUserMemoryRegion::default();
            region.as_mut_slice().copy_from_slice(chunk);
            spec(&region)
        });
        let files = self.fds.into_iter().map(File::from);
        Ok(Message::SetMemTable(specs.zip(files).collect()))
    }

    fn region(self) -> Result<(RegionSpec, [File; 1]), MessageError> {
        let single: VhostUserSingleMemoryRegion = self.exactly()?;
        if self.fds.is_empty() {
            return Err(MessageError::NotShared);
        }
        let error = self.descriptors();
        let files: Vec<File> = self.fds.into_iter().map(File::from).collect();
        let file = files.try_into().map_err(|_| error)?;
        Ok((spec(&single), file))
    }

    /// The front-end may send the region's descriptor along; it says nothing
    /// that the addresses do not.
    fn removed_region(&self) -> Result<Message, MessageError> {
        Ok(Message::RemMemReg(spec(&*self.exactly::<VhostUserSingleMemoryRegion>()?)))
    }
}

/// An area's description as the front-end wants it: as it is in C.
pub(crate) fn area_answer(spec: AreaSpec) -> Vec<u8> {
    let AreaSpec { len, offset, queues, entries } = spec;
    VhostUserInflight::new(len, offset, queues, entries).as_slice().to_vec()
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        len: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}
