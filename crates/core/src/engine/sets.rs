//! Volume sets, and how the bytes of a pod are reached.

use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;

use crate::id::PodId;
use crate::spec::{Backend, TenantId};
use crate::volume::{SetNumber, Volume};

/// A volume set as the engine has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSpec {
    /// Whose.
    pub pod: PodId,
    /// The pod's tenant.
    pub tenant: TenantId,
    /// Which of the pod's sets.
    pub number: SetNumber,
    /// Where it lives.
    pub backend: Backend,
    /// The pinned image's id: the lower directories, or the seed.
    pub image: String,
    /// Its volumes.
    pub volumes: Vec<Volume>,
}

impl SetSpec {
    /// A set of which only the labels are known, because its pod is in no database: enough to delete it, and for nothing else.
    #[must_use]
    pub fn labelled(pod: PodId, number: SetNumber, backend: Backend) -> Self {
        Self { pod, tenant: TenantId::default_tenant(), number, backend, image: String::new(), volumes: Vec::new() }
    }
}

/// What a new set is filled with by the engine itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// As the image has it: engine volumes are seeded from it; overlay volumes need nothing.
    Image,
    /// Empty volumes, for a whole tree to be restored into.
    Empty,
}

/// What it costs to copy a set beside itself, where its bytes are on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// The storage copies the whole set at one instant, whatever its size: [`Engine::set_snapshot`](super::Engine::set_snapshot).
    Instant,
    /// File by file; contents are shared until one of the copies changes.
    Shared,
    /// Every byte.
    Bytes,
}

/// How the bytes of a set are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetAccess {
    /// Every volume is a directory of this host.
    Local(Vec<VolumePath>),
    /// Only a helper container reaches them: these are directories inside of it.
    Mover(Vec<VolumePath>),
}

/// A volume's directory, on this host or in a mover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePath {
    /// The volume's name.
    pub name: String,
    /// Its mount path in the container.
    pub mount_path: String,
    /// The tree: the whole content, or the overlay's changes.
    pub path: PathBuf,
    /// The image's directory below; `Some` makes `path` an overlay's changes.
    pub lower: Option<PathBuf>,
    /// Paths in the tree that the engine makes and that are never captured.
    pub exclude: Vec<String>,
}

/// A whole set as it was at one instant, which nobody writes into: what a snapshot is read from while its pod goes on.
pub struct Still {
    /// Every volume of the set: its name, and its tree in the still.
    pub volumes: Vec<(String, PathBuf)>,
    /// As long as it lives, the still is not taken for left behind.
    pub keep: Box<dyn Send + Sync>,
}

impl fmt::Debug for Still {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Still").field("volumes", &self.volumes).finish_non_exhaustive()
    }
}

/// What one volume takes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUsage {
    /// The volume's name.
    pub name: String,
    /// Bytes on the engine's disk: of an overlay what the pod changed, else all of it; `None` when nobody can tell.
    pub bytes: Option<u64>,
}

/// How the system layer of a container is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerAccess {
    /// The overlay changes of the container's root on this host.
    Local {
        /// The directory.
        path: PathBuf,
        /// Paths below it that volumes or the engine hold.
        exclude: Vec<String>,
    },
    /// There is no way to it; the reason is for a condition.
    Unreachable {
        /// Why.
        reason: String,
    },
}

/// Talks to a helper container over its standard input and output.
pub struct MoverChannel {
    /// What the mover writes.
    pub reader: Box<dyn Read + Send>,
    /// What the mover reads.
    pub writer: Box<dyn Write + Send>,
}
