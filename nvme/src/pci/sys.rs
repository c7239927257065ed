//! The unsafe parts: VFIO's ioctls (Documentation/driver-api/vfio.rst,
//! `linux/vfio.h`).
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

use block_core::Memory;

/// `_IO(';', 100 + number)`.
const fn request(number: u64) -> u64 {
    (b';' as u64) << 8 | (100 + number)
}

const GET_API_VERSION: u64 = request(0);
const CHECK_EXTENSION: u64 = request(1);
const SET_IOMMU: u64 = request(2);
const GROUP_GET_STATUS: u64 = request(3);
const GROUP_SET_CONTAINER: u64 = request(4);
const GROUP_GET_DEVICE_FD: u64 = request(6);
const DEVICE_GET_REGION_INFO: u64 = request(8);
const DEVICE_GET_IRQ_INFO: u64 = request(9);
const DEVICE_SET_IRQS: u64 = request(10);
const DEVICE_RESET: u64 = request(11);
const IOMMU_MAP_DMA: u64 = request(13);
const IOMMU_UNMAP_DMA: u64 = request(14);

/// VFIO_TYPE1v2_IOMMU.
const TYPE1V2: libc::c_ulong = 3;
/// VFIO_GROUP_FLAGS_VIABLE.
const VIABLE: u32 = 1;
/// VFIO_DMA_MAP_FLAG_READ and _WRITE.
const READ_WRITE: u32 = 0b11;
/// VFIO_IRQ_SET_DATA_EVENTFD with ACTION_TRIGGER.
const EVENTFD_TRIGGER: u32 = 1 << 2 | 1 << 5;

/// The kernel's version of the interface, and the only one there has been.
const API_VERSION: i32 = 0;

#[repr(C)]
struct GroupStatus {
    bytes: u32,
    flags: u32,
}

/// VFIO_DEVICE_GET_REGION_INFO.
#[repr(C)]
pub(super) struct RegionInfo {
    bytes: u32,
    flags: u32,
    index: u32,
    capabilities: u32,
    /// Bytes of the region.
    pub(super) size: u64,
    /// Where it is in the device's file.
    pub(super) offset: u64,
}

impl RegionInfo {
    /// VFIO_REGION_INFO_FLAG_MMAP.
    pub(super) fn can_be_mapped(&self) -> bool {
        self.flags & 1 << 2 != 0
    }
}

#[repr(C)]
struct InterruptInfo {
    bytes: u32,
    flags: u32,
    index: u32,
    count: u32,
}

#[repr(C)]
struct InterruptSet {
    bytes: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    eventfd: i32,
}

#[repr(C)]
struct DmaMap {
    bytes: u32,
    flags: u32,
    address: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
struct DmaUnmap {
    bytes: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

const _: () = assert!(size_of::<RegionInfo>() == 32 && size_of::<InterruptSet>() == 24);
const _: () = assert!(size_of::<DmaMap>() == 32 && size_of::<DmaUnmap>() == 24);

/// Whether the kernel's VFIO is the one this is written for, with an IOMMU that maps
/// any memory.
pub(super) fn has_iommu(container: &File) -> io::Result<bool> {
    let version = with_number(container, GET_API_VERSION, 0)?;
    let extension = with_number(container, CHECK_EXTENSION, TYPE1V2)?;
    Ok(version == API_VERSION && extension == 1)
}

/// Whether all devices of the group are free to be used.
pub(super) fn is_viable(group: &File) -> io::Result<bool> {
    let mut status = GroupStatus { bytes: size_of::<GroupStatus>() as u32, flags: 0 };
    // SAFETY: the request writes to a group status.
    unsafe { with_struct(group, GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags & VIABLE != 0)
}

/// Puts a group into a container, and switches the IOMMU on.
pub(super) fn join(group: &File, container: &File) -> io::Result<()> {
    let mut descriptor = container.as_raw_fd();
    // SAFETY: the request reads a descriptor.
    unsafe { with_struct(group, GROUP_SET_CONTAINER, &mut descriptor) }?;
    with_number(container, SET_IOMMU, TYPE1V2).map(drop)
}

/// Opens a device of a group; the kernel resets its function.
pub(super) fn device(group: &File, name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the request reads a text that ends with a zero.
    let descriptor = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, for nobody else.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// What a region of the device is: 0 is BAR 0, 7 the configuration space.
pub(super) fn region(device: &File, index: u32) -> io::Result<RegionInfo> {
    let bytes = size_of::<RegionInfo>() as u32;
    let mut info = RegionInfo { bytes, flags: 0, index, capabilities: 0, size: 0, offset: 0 };
    // SAFETY: the request reads and writes a region's description of the size it says.
    unsafe { with_struct(device, DEVICE_GET_REGION_INFO, &mut info) }?;
    Ok(info)
}

/// How many interrupts of a kind there are.
pub(super) fn interrupts(device: &File, index: u32) -> io::Result<u32> {
    let bytes = size_of::<InterruptInfo>() as u32;
    let mut info = InterruptInfo { bytes, flags: 0, index, count: 0 };
    // SAFETY: the request reads and writes such a description.
    unsafe { with_struct(device, DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(info.count)
}

/// Lets the first interrupt of a kind write to an eventfd.
pub(super) fn connect_interrupt(
    device: &File,
    index: u32,
    eventfd: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut set = InterruptSet {
        bytes: size_of::<InterruptSet>() as u32,
        flags: EVENTFD_TRIGGER,
        index,
        start: 0,
        count: 1,
        eventfd: eventfd.as_raw_fd(),
    };
    // SAFETY: the request reads such a set, which has one descriptor as it says.
    unsafe { with_struct(device, DEVICE_SET_IRQS, &mut set) }.map(drop)
}

/// Resets the function.
pub(super) fn reset(device: &File) -> io::Result<()> {
    with_number(device, DEVICE_RESET, 0).map(drop)
}

/// Lets the container's devices reach memory from `iova` on. It must stay mapped until
/// [`unmap`], or until the container is closed.
pub(super) fn map(container: &File, memory: &Memory, iova: u64) -> io::Result<()> {
    let mut map = DmaMap {
        bytes: size_of::<DmaMap>() as u32,
        flags: READ_WRITE,
        address: memory.as_ptr().addr() as u64,
        iova,
        size: memory.len() as u64,
    };
    // SAFETY: the request reads such a description. What the devices may do to the
    // memory from now on is what DMA memory is for.
    unsafe { with_struct(container, IOMMU_MAP_DMA, &mut map) }.map(drop)
}

/// Takes memory away from the container's devices.
pub(super) fn unmap(container: &File, iova: u64, size: u64) -> io::Result<()> {
    let mut unmap = DmaUnmap { bytes: size_of::<DmaUnmap>() as u32, flags: 0, iova, size };
    // SAFETY: the request reads and writes such a description.
    unsafe { with_struct(container, IOMMU_UNMAP_DMA, &mut unmap) }.map(drop)
}

fn with_number(file: &File, request: u64, number: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the callers' requests take a number, and no address.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), request, number) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

/// # Safety
/// The request must read and write a `T` and nothing else.
unsafe fn with_struct<T>(file: &File, request: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: the caller says what the request does; the borrow is unique.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
