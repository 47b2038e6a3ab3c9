//! Making a snapshot of an archive that was received. The pod itself is not touched.

use std::sync::Arc;

use perennial_core::id::SnapshotId;
use perennial_core::pod::{Import, Work};
use perennial_core::progress::Progress;
use perennial_core::snapshot::{Snapshot, SnapshotState};
use perennial_core::spec::Backend;
use perennial_core::volume;
use perennial_snapshots::{ArchiveRequest, Error as RepositoryError, Pass, Repository, Time};

use super::capture::{pod_file_root, snapshot_tag};
use super::images::blocking;
use super::layer::parse_id;
use super::podfile::{Imported, PodFile};
use super::step::{StepError, definite, retry};
use super::worker::{Reconciler, View, current_operation};
use crate::import::compose::{Made, Marks};
use crate::import::{Broken, Devices, Limits, Spool, compose};
use crate::library::PodPath;
use crate::library::image::ImageTree;
use crate::store::{Page, SnapshotScope};

/// The code of an archive that is not on this server's disk.
pub(super) const BODY_MISSING: &str = "import-body-missing";
/// Snapshots that are looked at in one go.
const PAGE: u32 = 100;

/// Everything that a thread needs.
struct Job {
    pod: perennial_core::pod::Pod,
    row: Snapshot,
    import: Import,
    base: Option<Snapshot>,
    /// The image's id and its snapshot.
    image: (String, perennial_snapshots::SnapshotFileId),
    hostname: String,
    now: jiff::Timestamp,
    spool: Spool,
}

impl Reconciler {
    /// Takes a received archive in; the row becomes `uploaded`, and what was received goes.
    pub(super) async fn import(&self, view: &mut View, id: SnapshotId, progress: &Progress) -> Result<(), StepError> {
        let row = view.snapshot(id).ok_or(StepError::Overtaken)?.clone();
        let import = match view.pod.tasks.first().map(|t| &t.work) {
            Some(Work::Import { snapshot, import }) if *snapshot == id => import.clone(),
            _ => return Err(StepError::Overtaken),
        };
        let spool = self.settings.imports.clone();
        if spool.open(id).map_err(|e| retry(BODY_MISSING, format!("open the received archive: {e}")))?.is_none() {
            return Err(retry(BODY_MISSING, "the archive that was received is not on this server; send it again"));
        }
        self.forget_earlier_import(view, id).await?;
        self.ensure_image_stored(view, progress).await?;
        self.note_begin(&row);
        let base = if import.into.is_some() { self.newest_restorable(view).await? } else { None };
        let pinned = view.pod.image.as_ref().map(|image| image.id.clone());
        let image = base.as_ref().and_then(|b| b.image.clone()).or(pinned).unwrap_or_default();
        let stored = self.store.image_fetch(&view.pod.tenant, &image).await?;
        let stored = stored.ok_or_else(|| retry("image-lost", format!("image {image} is not in the repository")))?;
        let (job_base, comment) = (base.as_ref().map(|b| b.id), import.comment.clone());
        let job = Job {
            pod: view.pod.clone(),
            row: row.clone(),
            import,
            base,
            image: (image.clone(), parse_id(&stored.repository_id)?),
            hostname: self.settings.installation.clone(),
            now: self.now(),
            spool: spool.clone(),
        };
        let (repositories, tenant, progress) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        let busy = "other archives are becoming snapshots; this one waits for its turn";
        let turn = spool.making().ok_or_else(|| retry("import-busy", busy))?;
        let made = blocking(move || {
            // The thread has the turn: it goes on for a while when nobody waits for it any more.
            let _turn = turn;
            job.run(&repositories.open(&tenant)?, &progress)
        });
        let made = made.await;
        if matches!(made, Err(StepError::Definite(_))) {
            // Nobody will try again.
            spool.remove(id);
        }
        let row = made?;
        let mut base = job_base.map_or_else(String::new, |base| format!(", all else as in snapshot {base}"));
        if !comment.is_empty() {
            base = format!("{base} ({comment})");
        }
        let message = format!("snapshot {id} was made of an archive{base}; it is in the repository, not yet read back");
        let event = self.event(&view.pod, current_operation(&view.pod), "snapshot.uploaded", message);
        self.commit_snapshot(view, row, event).await?;
        spool.remove(id);
        Ok(())
    }

    /// Forgets what a try wrote that did not get to record it.
    async fn forget_earlier_import(&self, view: &View, id: SnapshotId) -> Result<(), StepError> {
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let stale = blocking(move || {
            let found = repositories.open(&tenant)?.find(&[&snapshot_tag(id)])?;
            Ok(found.into_iter().map(|s| s.id).collect())
        });
        self.forget_stale(view, stale.await?).await
    }

    async fn newest_restorable(&self, view: &View) -> Result<Option<Snapshot>, StepError> {
        let scope = SnapshotScope::Pod(view.pod.id);
        let mut after = None;
        loop {
            let page = self.store.snapshot_list(&scope, &Page { after, limit: PAGE }).await?;
            if let Some(found) = page.iter().find(|s| s.is_restorable()) {
                return Ok(Some(found.clone()));
            }
            match page.last() {
                Some(last) => after = Some(last.id.to_string()),
                None => return Ok(None),
            }
        }
    }
}

impl Job {
    fn run(self, repository: &Repository, progress: &Progress) -> Result<Snapshot, StepError> {
        let made = self.compose(repository, progress).map_err(failed)?;
        let imported = Imported {
            into: self.import.into.clone(),
            base: self.base.as_ref().map(|b| b.id.to_string()),
            comment: self.import.comment.clone(),
        };
        let file = PodFile::imported(&self.pod, &self.row, (made.backend, &made.volumes), imported, self.now)
            .with_losses(&self.losses());
        let mut roots = vec![pod_file_root(&file)];
        roots.extend(made.roots);
        let request = ArchiveRequest {
            time: self.now,
            hostname: self.hostname.clone(),
            tags: vec![format!("pod:{}", self.pod.id), snapshot_tag(self.row.id), "imported".to_owned()],
            parents: Vec::new(),
            roots,
            pass: Pass::Commit,
            accept_losses: Vec::new(),
        };
        let archived = repository.archive(&request, progress)?;
        let written = archived.snapshot.ok_or_else(|| retry("internal", "a commit pass made no snapshot"))?;
        let mut volumes = made.volumes;
        for volume in &mut volumes {
            let at = format!("/volumes/{}", volume.name);
            let counts = archived.per_root.iter().find(|root| root.at == at).map(|root| root.counts);
            (volume.files, volume.bytes) = (counts.map(|c| c.files), counts.map(|c| c.bytes));
        }
        Ok(Snapshot {
            state: SnapshotState::Uploaded,
            backend: Some(made.backend),
            captured_at: Some(self.now),
            bytes: Some(archived.counts.bytes),
            new_bytes: Some(made.new_bytes + archived.new_bytes),
            files: Some(archived.counts.files),
            volumes,
            image: Some(self.image.0.clone()),
            losses: self.losses(),
            repository_id: Some(written.to_string()),
            ..self.row
        })
    }

    /// What the base lacks, its import lacks as well.
    fn losses(&self) -> Vec<perennial_core::snapshot::Loss> {
        self.base.as_ref().map(|b| b.losses.clone()).unwrap_or_default()
    }

    fn compose(&self, repository: &Repository, progress: &Progress) -> Result<Made, Broken> {
        let tree = ImageTree::load(repository, self.image.1, &self.image.0)?;
        let id = self.row.id;
        let open = || match self.spool.open(id)? {
            Some(file) => Ok(Box::new(file) as Box<dyn std::io::Read>),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        let limits: Limits = self.spool.limits();
        let devices = if self.import.allow_devices { Devices::Allowed } else { Devices::Refused };
        let import = compose::Import {
            repository,
            open: &open,
            rules: (devices, limits),
            marks: Marks { time: Time::from(self.now), device: device_of(id) },
            image: (self.image.0.clone(), Arc::new(tree)),
            progress,
        };
        let layout = self.pod.image.as_ref().map(|image| image.layout.clone()).unwrap_or_default();
        // The form of the engine's own volumes: a set on overlay volumes takes it as well, whatever directories it has.
        let volumes = volume::layout(&self.pod.spec.profile, Backend::Engine, &layout);
        let keeps_layer = self.pod.keeps_layer();
        let Some(into) = &self.import.into else { return import.whole(&volumes, keeps_layer) };
        let path = PodPath::parse(into.as_bytes()).map_err(|e| Broken::refused(e.to_string()))?;
        let at: Vec<Vec<u8>> = path.names().map(<[u8]>::to_vec).collect();
        if let Some(base) = &self.base {
            let stored: perennial_snapshots::SnapshotFileId = base
                .repository_id
                .as_deref()
                .unwrap_or_default()
                .parse()
                .map_err(|_| Broken::refused("the newest snapshot has no place in the repository"))?;
            let tree = repository.snapshot(stored)?.tree;
            return import.below(&at, (tree, &base.volumes), base.backend.unwrap_or(Backend::Engine));
        }
        let tree = import.unchanged(&volumes, keeps_layer)?;
        let volumes: Vec<_> = volumes.iter().map(compose::row).collect();
        import.below(&at, (tree, &volumes), Backend::Overlay)
    }
}

/// A number that no device of a capture has: names of one inode find each other by it, within this import alone.
fn device_of(id: SnapshotId) -> u64 {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(id.to_string().as_bytes());
    hash.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte)) | 1 << 63
}

fn failed(broken: Broken) -> StepError {
    match broken {
        Broken::Refused { problem, hint } => definite("archive-refused", format!("archive: {problem}"), hint),
        Broken::Io(error) => match error.downcast::<RepositoryError>() {
            Ok(error) => error.into(),
            Err(error) => retry("import-unreadable", format!("read the received archive: {error}")),
        },
    }
}
