//! Putting a snapshot together out of others, in the repository: for a restore of parts and for a clone.
//!
//! Trees are written; of a pod's files only those of its identity are read. What comes out is a snapshot like any other: it
//! is read back before it counts, and then it is restored as a whole.

use perennial_core::id::SnapshotId;
use perennial_core::parts::{self, Extra, Layer, Selection};
use perennial_core::plan::Recipe;
use perennial_core::pod::{Composed, Identity, Pod, Work};
use perennial_core::progress::Progress;
use perennial_core::record::Record;
use perennial_core::snapshot::{Grade, Loss, Snapshot, SnapshotKind, SnapshotState, SnapshotVolume};
use perennial_core::verbs;
use perennial_snapshots::{
    ArchiveRequest, Archived, Composition, Error, Extra as Extras, Graft, Layout, Node, NodeKind, Pass, Repository,
    Root, SnapshotFileId, Source, TreeId, With, removed,
};

use super::capture::{pod_file_root, snapshot_tag};
use super::images::blocking;
use super::layer::{SYSTEM, SYSTEM_REMOVED, parse_id};
use super::podfile::{ComposedOf, PodFile, grade_named};
use super::step::{StepError, definite, retry};
use super::worker::{Reconciler, View, current_operation};
use crate::identity::{self, Known, Renewed};
use crate::library::{Failure, ImageBelow};
use crate::store::Change;

impl Reconciler {
    pub(super) async fn begin_compose(&self, view: &mut View, base: SnapshotId) -> Result<(), StepError> {
        let now = self.now();
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let id = SnapshotId::from_parts(millis, self.ids.random());
        let row = Snapshot::pending(id, view.pod.id, view.pod.tenant.clone(), SnapshotKind::Composed, now);
        let opening = self.repositories.opening();
        self.memory().began.insert(id, opening);
        let mut change = Change::default();
        // One that was begun over an older base is finished by nobody.
        if let Some(old) = begun(&view.pod).and_then(|old| view.snapshot(old.snapshot))
            && (matches!(old.state, SnapshotState::Pending | SnapshotState::Uploaded)
                || self.store.snapshot_is_unused_composition(old).await?)
        {
            let error = Some("the data changed before it was complete".to_owned());
            change.snapshots.push(Snapshot { state: SnapshotState::Failed, error, ..old.clone() });
        }
        self.record_with(view, Record::ComposeBegun(row, Composed { snapshot: id, base }), change).await
    }

    /// Puts the snapshot together and uploads it; the row becomes `uploaded`.
    pub(super) async fn compose(
        &self,
        view: &mut View,
        id: SnapshotId,
        recipe: Recipe,
        progress: &Progress,
    ) -> Result<(), StepError> {
        self.ensure_image_stored(view, progress).await?;
        let row = view.snapshot(id).ok_or(StepError::Overtaken)?.clone();
        let (base, wanted) = match &recipe {
            Recipe::Parts { base, wanted, .. } => (*base, Some(self.restorable(*wanted).await?)),
            Recipe::Fork { base, .. } => (*base, None),
        };
        let base = self.restorable(base).await?;
        self.forget_earlier(view, id).await?;
        let image = self.store.image_fetch(&view.pod.tenant, &self.pinned(view)?.id).await?;
        let image = image.ok_or_else(|| retry("image-lost", "the image is not in the repository"))?;
        let now = self.now();
        let assembly = Assembly {
            pod: view.pod.clone(),
            row: row.clone(),
            base: base.clone(),
            wanted,
            recipe,
            image: (parse_id(&image.repository_id)?, image.image),
            request: ArchiveRequest {
                time: now,
                hostname: self.settings.installation.clone(),
                tags: vec![format!("pod:{}", view.pod.id), snapshot_tag(id), "generation:0".to_owned()],
                parents: Vec::new(),
                roots: Vec::new(),
                pass: Pass::Commit,
                accept_losses: Vec::new(),
            },
        };
        let (repositories, tenant, progress) = (self.repositories.clone(), view.pod.tenant.clone(), progress.clone());
        let done = blocking(move || assembly.run(&repositories.open(&tenant)?, &progress)).await?;
        let told = done.told.as_ref().map_or_else(String::new, |told| format!("; {told}"));
        let message = format!("snapshot {id} was put together out of {}{told}", done.sources);
        let event = self.event(&view.pod, current_operation(&view.pod), "snapshot.composed", message);
        self.commit_snapshot(view, done.into_row(row, &base, now)?, event).await
    }

    async fn restorable(&self, id: SnapshotId) -> Result<Snapshot, StepError> {
        self.store.snapshot_fetch(id).await?.filter(Snapshot::is_restorable).ok_or_else(|| {
            definite("snapshot-not-restorable", format!("snapshot {id} is not verified or no longer exists"), "")
        })
    }

    /// What an earlier try of the same snapshot left in the repository without recording it.
    async fn forget_earlier(&self, view: &View, id: SnapshotId) -> Result<(), StepError> {
        let (repositories, tenant) = (self.repositories.clone(), view.pod.tenant.clone());
        let stale = blocking(move || {
            let found = repositories.open(&tenant)?.find(&[&snapshot_tag(id)])?;
            Ok(found.into_iter().map(|snapshot| snapshot.id).collect())
        });
        self.forget_stale(view, stale.await?).await
    }
}

/// What the pod's work has begun to put together.
fn begun(pod: &Pod) -> Option<Composed> {
    match pod.tasks.first().map(|task| &task.work) {
        // What a clone has begun is nothing that a restore into it may give up.
        Some(Work::Replace { composed, .. }) => *composed,
        _ => pod.fork.and_then(|fork| fork.composed),
    }
}

/// Everything that is needed on a thread without the database.
struct Assembly {
    pod: Pod,
    row: Snapshot,
    base: Snapshot,
    wanted: Option<Snapshot>,
    recipe: Recipe,
    /// The snapshot of the image, and the image's id.
    image: (SnapshotFileId, String),
    request: ArchiveRequest,
}

struct Done {
    archived: Archived,
    grade: Grade,
    losses: Vec<Loss>,
    /// What people are told of the machine's identity.
    told: Option<String>,
    /// Which snapshots it is made of, in words.
    sources: String,
}

impl Done {
    fn into_row(self, row: Snapshot, base: &Snapshot, now: jiff::Timestamp) -> Result<Snapshot, StepError> {
        let Self { archived, grade, losses, .. } = self;
        let volume = |v: &SnapshotVolume| {
            let at = format!("/volumes/{}", v.name);
            let counts = archived.per_root.iter().find(|root| root.at == at).map(|root| root.counts);
            SnapshotVolume { files: counts.map(|c| c.files), bytes: counts.map(|c| c.bytes), ..v.clone() }
        };
        let repository_id = archived.snapshot.ok_or_else(|| retry("internal", "a commit pass made no snapshot"))?;
        Ok(Snapshot {
            state: SnapshotState::Uploaded,
            // Of no set and no generation: it never permits that anything is deleted.
            set: None,
            generation: 0,
            backend: base.backend,
            grade: Some(grade),
            writer: None,
            captured_at: Some(now),
            bytes: Some(archived.counts.bytes),
            new_bytes: Some(archived.new_bytes),
            files: Some(archived.counts.files),
            volumes: base.volumes.iter().map(volume).collect(),
            image: base.image.clone(),
            losses,
            repository_id: Some(repository_id.to_string()),
            ..row
        })
    }
}

/// What is exchanged in the base, by part.
type Exchanges = Vec<(Selection, With)>;

impl Assembly {
    fn run(mut self, repository: &Repository, progress: &Progress) -> Result<Done, StepError> {
        let base = parse_id(self.base.repository_id.as_deref().unwrap_or_default())?;
        let tree = repository.snapshot(base)?.tree;
        let file = PodFile::parse(&repository.read_file(base, "/pod.json")?)
            .ok_or_else(|| definite("snapshot-unreadable", "its pod.json cannot be read", ""))?;
        let mut of = ComposedOf::new(self.base.id);
        let mut losses = self.base.losses.clone();
        let mut told = None;
        let mut sources = format!("snapshot {}", self.base.id);
        let exchanges: Exchanges = match (&self.recipe, &self.wanted) {
            (Recipe::Parts { parts, .. }, Some(wanted)) => {
                self.check_same_kind(wanted)?;
                let ours = self.base.volumes.iter().map(|v| (v.name.as_str(), v.mount_path.as_str()));
                verbs::require_same_volumes(wanted, ours).map_err(|e| refused(&e))?;
                let selected = verbs::select(&self.pod, wanted, parts).map_err(|e| refused(&e))?;
                let chosen = |loss: &Loss| selected.iter().any(|part| part.holds(&loss.path));
                losses.retain(|loss| !chosen(loss));
                losses.extend(wanted.losses.iter().filter(|loss| chosen(loss)).cloned());
                of.parts_of = Some(wanted.id.to_string());
                of.parts = selected.iter().map(Selection::stored).collect();
                sources = format!("{sources} and {} of {}", of.parts.join(", "), wanted.id);
                let snapshot = parse_id(wanted.repository_id.as_deref().unwrap_or_default())?;
                let extra = if parts.extra == Extra::Keep { Extras::Kept } else { Extras::Removed };
                selected.into_iter().map(|part| (part, With::Taken { snapshot, extra })).collect()
            }
            (Recipe::Fork { identity: Identity::Renewed, .. }, _) => {
                let renewed = self.renew_identity(repository, tree)?;
                told = identity::told(&renewed);
                of.identity = renewed.iter().map(|file| file.path.clone()).collect();
                self.identity_exchanges(renewed)
            }
            _ => Vec::new(),
        };
        let file = if of.parts.is_empty() { file } else { file.mixed() };
        let grade = grade_named(&file.grade);
        let file = file.composed(&self.pod, &self.row, self.request.time, of).with_losses(&losses);
        self.request.roots = self.roots(repository, (base, tree), &exchanges)?;
        self.request.roots.insert(0, pod_file_root(&file));
        let archived = repository.archive(&self.request, progress)?;
        Ok(Done { archived, grade, losses, told, sources })
    }

    /// Trees of two images, or kept in two ways, do not fit together.
    fn check_same_kind(&self, wanted: &Snapshot) -> Result<(), StepError> {
        let what = if self.base.image != wanted.image {
            "the image"
        } else if self.base.backend != wanted.backend {
            "the volume backend"
        } else {
            return Ok(());
        };
        Err(not_composable(&format!("{what} of snapshot {} is not that of the pod's data", wanted.id)))
    }

    /// What the new snapshot holds beside its `pod.json`.
    fn roots(
        &self,
        repository: &Repository,
        (base, tree): (SnapshotFileId, TreeId),
        exchanges: &Exchanges,
    ) -> Result<Vec<Root>, StepError> {
        let layer = self.pod.keeps_layer().then(|| (None, SYSTEM.to_owned(), ""));
        let volumes = self.base.volumes.iter();
        let volumes = volumes.map(|v| (Some(&v.name), format!("/volumes/{}", v.name), v.mount_path.as_str()));
        let mut image: Option<ImageBelow> = None;
        let mut roots = Vec::new();
        let mut placed = 0;
        for (volume, at, mount) in volumes.chain(layer) {
            let list = removed::list_path(&at);
            let has_list = is_there(repository.entry(tree, list.as_bytes()))?;
            let is_upper = has_list || volume.is_none();
            let of_this = exchanges.iter().filter(|(part, _)| part.volume.as_ref() == volume);
            let graft = |(part, with): &(Selection, With)| Graft { path: part.path.clone().into(), with: with.clone() };
            let grafts: Vec<Graft> = of_this.map(graft).collect();
            placed += grafts.len();
            if grafts.is_empty() {
                let stored = |path: String| Root { at: path.clone(), source: Source::Stored { snapshot: base, path } };
                if volume.is_some() || is_there(repository.entry(tree, at.as_bytes()))? {
                    roots.push(stored(at));
                }
                roots.extend(has_list.then(|| stored(list)));
                continue;
            }
            self.check_same_layout(repository, &list, has_list)?;
            let mut lower = None;
            if is_upper && grafts.iter().any(needs_image) {
                let read = match image.take() {
                    Some(read) => read,
                    None => ImageBelow::load(repository, self.image.0, &self.image.1)
                        .map_err(|failure| unreadable(&self.recipe, failure))?,
                };
                lower = Some(image.insert(read).at(mount));
            }
            let layout = if is_upper { Layout::OverlayUpper } else { Layout::Plain };
            let composition = Composition { base, root: at.clone(), layout, lower, grafts, salt: self.salt() };
            roots.push(Root { at, source: Source::Composed(composition) });
        }
        if placed == exchanges.len() {
            return Ok(roots);
        }
        Err(not_composable("the snapshot has volumes that the pod's data has not"))
    }

    /// A tree of changes and a whole one do not fit together, whatever the rows say.
    fn check_same_layout(&self, repository: &Repository, list: &str, has_list: bool) -> Result<(), StepError> {
        let Some(wanted) = self.wanted.as_ref().filter(|_| list != SYSTEM_REMOVED) else { return Ok(()) };
        let tree = repository.snapshot(parse_id(wanted.repository_id.as_deref().unwrap_or_default())?)?.tree;
        if is_there(repository.entry(tree, list.as_bytes()))? == has_list {
            return Ok(());
        }
        Err(not_composable(&format!("snapshot {} keeps its volumes in another way than the pod's data", wanted.id)))
    }

    fn salt(&self) -> [u8; 16] {
        let mut salt = [0; 16];
        for (at, byte) in self.row.id.to_string().bytes().enumerate() {
            salt[at % 16] ^= byte;
        }
        salt
    }

    // ---- identity ------------------------------------------------------------------------------------------------

    fn place(&self, path: &str) -> Option<Selection> {
        let volumes = self.base.volumes.iter().map(|v| (v.name.as_str(), v.mount_path.as_str()));
        let volumes: Vec<(&str, &str)> = volumes.collect();
        parts::place(&volumes, if self.pod.keeps_layer() { Layer::Kept } else { Layer::None }, path)
    }

    /// The source's own files of its identity, as a clone gets them.
    fn renew_identity(&self, repository: &Repository, tree: TreeId) -> Result<Vec<Renewed>, StepError> {
        let mut paths: Vec<String> = identity::MACHINE_IDS.map(str::to_owned).to_vec();
        if let Some(directory) = self.place(identity::SSH_DIRECTORY) {
            let found = own(repository.entry(tree, directory.stored().as_bytes()))?;
            if let Some(directory) = found.filter(|node| node.kind == NodeKind::Dir) {
                let names = repository.entries(&directory)?.into_iter().map(|node| node.name);
                let names = names.filter(|name| identity::is_host_key(name)).filter_map(|n| String::from_utf8(n).ok());
                let keys = names.map(|name| format!("{}/{name}", identity::SSH_DIRECTORY));
                let mut keys: Vec<String> = keys.take(identity::HOST_KEYS_MAX + 1).collect();
                if keys.len() > identity::HOST_KEYS_MAX {
                    return Err(too_many_keys(&keys.pop().unwrap_or_default()));
                }
                paths.append(&mut keys);
            }
        }
        let mut known = Vec::new();
        for path in paths {
            let Some(part) = self.place(&path) else { continue };
            let found = own(repository.entry(tree, part.stored().as_bytes()))?;
            let is_one = |node: &Node| node.kind == NodeKind::File && node.size <= identity::SIZE_MAX;
            let Some(node) = found.filter(is_one) else { continue };
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut repository.open_file(&node)?, &mut content)
                .map_err(|e| retry("repository-damaged", format!("read {path}: {e}")))?;
            known.push(Known { path, content });
        }
        identity::renew(&known).map_err(|e| retry("identity-not-made", format!("make ssh host keys: {e}")))
    }

    fn identity_exchanges(&self, renewed: Vec<Renewed>) -> Exchanges {
        let with = |content: Option<Vec<u8>>| content.map_or(With::Nothing, With::Content);
        renewed.into_iter().filter_map(|file| Some((self.place(&file.path)?, with(file.content)))).collect()
    }
}

/// Whether an exchange depends on what the image has there: not that of a whole tree, nor that of a file's content.
const fn needs_image(graft: &Graft) -> bool {
    match &graft.with {
        With::Taken { extra: Extras::Removed, .. } => !graft.path.is_empty(),
        With::Taken { extra: Extras::Kept, .. } | With::Nothing => true,
        With::Content(_) => false,
    }
}

/// What the snapshot itself holds at a path; none when it is not there, or below something that is no directory.
fn own(found: perennial_snapshots::Result<Node>) -> Result<Option<Node>, StepError> {
    match found {
        Ok(node) => Ok(Some(node)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_there(found: perennial_snapshots::Result<Node>) -> Result<bool, StepError> {
    own(found).map(|node| node.is_some())
}

fn not_composable(why: &str) -> StepError {
    definite(
        "parts-not-composable",
        format!("{why}: no parts of it can be taken"),
        "restore everything, or fetch the files: perennial snapshot export",
    )
}

pub(super) fn too_many_keys(last: &str) -> StepError {
    definite(
        "identity-too-large",
        format!("there are more than {} files of ssh host keys, {last:?} among them", identity::HOST_KEYS_MAX),
        "remove those that no ssh server uses, or keep the identity: perennial pod clone --keep-identity",
    )
}

fn refused(error: &perennial_core::Error) -> StepError {
    definite("parts-not-composable", error.to_string(), "choose other parts, or restore everything")
}

fn unreadable(recipe: &Recipe, failure: Failure) -> StepError {
    match failure {
        Failure::Repository(error) => error.into(),
        other => {
            let hint = match recipe {
                Recipe::Parts { .. } => {
                    "restore everything, or whole volumes, or fetch the files: perennial snapshot export"
                }
                // A key that cannot be made is deleted, which may be a deletion from the image.
                Recipe::Fork { .. } => {
                    "remove ssh host keys other than Ed25519 and ECDSA from the pod, or keep its identity: \
                     perennial pod clone --keep-identity"
                }
            };
            definite("image-unreadable", perennial_core::Error::from(other).to_string(), hint)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use perennial_core::parts::Parts;

    use super::*;

    #[test]
    fn only_what_may_uncover_the_image_needs_a_look_at_it() {
        let snapshot: SnapshotFileId = "0".repeat(64).parse().unwrap();
        let needs = |path: &str, with: With| needs_image(&Graft { path: path.into(), with });
        assert!(!needs("", With::Taken { snapshot, extra: Extras::Removed }), "a whole volume");
        assert!(!needs("etc/machine-id", With::Content(Vec::new())), "an identity");
        assert!(needs("a", With::Taken { snapshot, extra: Extras::Removed }));
        assert!(needs("", With::Taken { snapshot, extra: Extras::Kept }));
        assert!(needs("a", With::Nothing));
    }

    #[test]
    fn an_image_that_cannot_be_read_leaves_a_clone_and_a_restore_different_ways_on() {
        let id = SnapshotId::from_parts(1, [1; 10]);
        let parts = Parts::new(vec!["home".to_owned()], Vec::new(), Extra::Remove).unwrap().unwrap();
        let recipes = [
            (Recipe::Parts { base: id, wanted: id, parts }, "restore everything"),
            (Recipe::Fork { base: id, identity: Identity::Renewed }, "--keep-identity"),
        ];
        for (recipe, way) in recipes {
            let error = unreadable(&recipe, Failure::ImageUnreadable("it is compressed".to_owned()));
            let StepError::Definite(problem) = error else { panic!("{error:?}") };
            assert!(problem.code == "image-unreadable" && problem.hint.contains(way), "{problem:?}");
        }
    }
}
