//! An empty directory out of a program: what a bucket, a phone or another host looks like when it is mounted.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Format: struct fuse_in_header and the opcodes of linux/fuse.h.
const HEADER: usize = 40;
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;

/// Mounted until it is dropped.
pub struct Fuse(PathBuf);

impl Fuse {
    pub fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut device = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("bucket", at, "fuse", MountFlags::NODEV, &*options).unwrap();
        std::thread::spawn(move || {
            let mut request = vec![0; 1 << 17];
            // Unmounted, there is nothing more to read.
            while let Ok(length) = device.read(&mut request) {
                if let Some(answer) = answer(&request[..length]) {
                    let _ = device.write(&answer);
                }
            }
        });
        Self(at.to_owned())
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn answer(request: &[u8]) -> Option<Vec<u8>> {
    assert!(request.len() >= HEADER, "a request of {} bytes", request.len());
    let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
    let (error, body): (i32, Vec<u8>) = match opcode {
        FORGET => return None,
        INIT => {
            let mut body = vec![0; 64];
            body[..4].copy_from_slice(&7_u32.to_ne_bytes());
            body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
            body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
            (0, body)
        }
        STATFS => (0, vec![0; 80]),
        GETATTR => {
            let mut body = vec![0; 104];
            body[16..24].copy_from_slice(&1_u64.to_ne_bytes());
            body[76..80].copy_from_slice(&0o40_755_u32.to_ne_bytes());
            body[80..84].copy_from_slice(&2_u32.to_ne_bytes());
            (0, body)
        }
        LOOKUP => (-2, Vec::new()),
        // ENOSYS
        _ => (-38, Vec::new()),
    };
    let length = u32::try_from(16 + body.len()).unwrap();
    Some([&length.to_ne_bytes()[..], &error.to_ne_bytes(), &request[8..16], &body].concat())
}
