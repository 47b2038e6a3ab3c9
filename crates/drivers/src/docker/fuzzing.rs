//! What reads an image as an engine exports it, for the fuzz targets in `fuzz/`, and seeds for it.

use std::io;
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::{image, untar};

/// Unpacks what a container exports below an empty directory, and looks at which directories it has.
#[must_use]
pub fn export(input: &[u8], into: &Path) -> bool {
    let layout = image::layout_of_export(input).is_ok();
    untar::extract(input, into).is_ok() && layout
}

/// Inputs that the target takes.
///
/// # Errors
/// None that a system with memory has.
pub fn seeds() -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let header = |kind, size| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o755);
        header.set_mtime(3);
        // Whoever makes it may keep it.
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header
    };
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header(EntryType::Directory, 0), "etc/", io::empty())?;
    builder.append_pax_extensions([("mtime", &b"12.5"[..])])?;
    builder.append_data(&mut header(EntryType::Regular, 2), "etc/motd", &b"hi"[..])?;
    builder.append_link(&mut header(EntryType::Link, 0), "etc/issue", "etc/motd")?;
    builder.append_link(&mut header(EntryType::Symlink, 0), "bin", "usr/bin")?;
    let mut pipe = header(EntryType::Fifo, 0);
    pipe.set_device_major(0)?;
    pipe.set_device_minor(0)?;
    builder.append_data(&mut pipe, "etc/pipe", io::empty())?;
    builder.append_data(&mut header(EntryType::Regular, 3), "etc/motd", &b"new"[..])?;
    Ok(vec![("export", builder.into_inner()?)])
}
