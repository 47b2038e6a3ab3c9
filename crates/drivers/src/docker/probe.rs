//! What works here, found out by trying it once and remembered in the storage root.
//!
//! Every runtime runs a small script on a real overlay volume: list, look at, read, write, rename and delete, and changes
//! outside the volume. What counts is what then is on this host's disk: an engine on another host, which could not have
//! this directory by any name, cannot pass. The script's programs are this host's own, with the libraries they need, and
//! busybox where one is missing: no image has to be there, and none is pulled. The host's own come first, because they
//! use more of the kernel's interface than busybox does (`statx`, on which gVisor of 2022 fails).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bollard::models::{ContainerStateStatusEnum, VolumeCreateRequest};
use bollard::query_parameters::{RemoveVolumeOptions, StartContainerOptions, WaitContainerOptions};
use futures::StreamExt;
use perennial_core::engine::{Capabilities, EngineError, LayerAccess, RuntimeInfo};
use perennial_core::spec::Backend;
use serde::{Deserialize, Serialize};

use super::client::{blocking, fail, io, look, transient};
use super::overlay::{Definition, options};
use super::posix::Trial;
use super::scratch::{ScratchRun, Stdin, token};
use super::tiny::{Role, TinyFile};
use super::{DockerEngine, VolumeAccess, labels, posix, tree};

const FILE: &str = "probe.json";
/// How long one runtime may take for a script of some lines.
const PATIENCE: Duration = Duration::from_secs(60);
/// Programs that the script needs.
const PROGRAMS: [&str; 6] = ["sh", "ls", "stat", "mv", "rm", "mkdir"];
/// A file of the probe's image that is there to be deleted.
const GONE: &str = "perennial/gone";
const SCRIPT: &str = r#"
set -- /vol/*
globbed="$*"
listed=$(ls -lA /vol >/dev/null && ls -A /vol)
inside=$(ls -A /vol/dir)
stat /vol/dir /vol/dir/inner >/dev/null && looked=yes
read line < /vol/kept
mkdir /vol/new && echo made > /vol/new/file && mv /vol/new/file /vol/new/renamed
mv /vol/moved /vol/new/moved
rm /vol/gone
rm -r /vol/dir
left=$(ls -A /vol)
ls -lA /perennial >/dev/null && stat /perennial/gone >/dev/null && programs=work
echo $globbed, $listed, $inside, $looked, $line, $left > /vol/report
echo programs $programs > /vol/programs
echo changed > /perennial-probe
rm /perennial/gone
"#;
/// What it has to have seen.
const REPORT: &str = "/vol/dir /vol/gone /vol/kept /vol/moved, dir gone kept moved, inner, yes, kept, kept new";

/// What is remembered.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Everything the result depends on.
    key: String,
    runtimes: Vec<RememberedRuntime>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RememberedRuntime {
    name: String,
    overlay_volumes: bool,
    root_changes: bool,
    freeze: bool,
    /// Whether this host's own programs can look at what is on no volume.
    programs: bool,
}

impl DockerEngine {
    pub(super) async fn probe(&self) -> Result<Capabilities, EngineError> {
        let mut notes = Vec::new();
        let runtimes = self.probe_runtimes(&mut notes).await?;
        let storage = self.storage.clone();
        let root = blocking(move || {
            storage.check()?;
            Ok(posix::tried(&storage.scratch()))
        })
        .await?;
        let (unsafe_root, untried) = match root {
            Trial::Kept => (None, None),
            Trial::Broken(why) => (Some(why), None),
            Trial::Untried(why) => (None, Some(why)),
        };
        notes.extend(untried);
        let mut backends = Vec::new();
        for backend in &self.config.backends {
            match backend {
                Backend::Engine => backends.push(Backend::Engine),
                Backend::Overlay => match unsafe_root.clone().or(self.overlay_obstacle(&runtimes).map(str::to_owned)) {
                    None => backends.insert(0, Backend::Overlay),
                    Some(why) => notes.push(format!("overlay volumes are not offered: {why}")),
                },
            }
        }
        let tried = backends.contains(&Backend::Engine) && self.config.volume_access != VolumeAccess::Mover;
        if tried {
            // Pods whose volumes are elsewhere go on whatever this says.
            let found = self.volumes_tried().await.unwrap_or_else(|error| Trial::Untried(error.to_string()));
            match found {
                Trial::Kept => {}
                Trial::Broken(why) => notes.push(format!("databases are not safe on the engine's own volumes: {why}")),
                Trial::Untried(why) => notes.push(format!("the engine's own volumes could not be tried: {why}")),
            }
        }
        for runtime in runtimes.iter().filter(|r| !r.programs) {
            let name = &runtime.name;
            notes.push(format!("on the runtime {name} common programs (ls, stat) fail, whatever the backend"));
        }
        let info = |r: RememberedRuntime| RuntimeInfo {
            name: r.name,
            overlay_volumes: r.overlay_volumes,
            root_changes: r.root_changes,
            freeze: r.freeze,
        };
        let default = self.config.default_runtime.clone().unwrap_or_else(|| self.info.default_runtime.clone());
        Ok(Capabilities {
            version: format!("Docker Engine {}", self.info.version),
            runtimes: runtimes.into_iter().map(info).collect(),
            default_runtime: default,
            backends,
            cpus: self.info.cpus,
            notes,
        })
    }

    fn overlay_obstacle(&self, runtimes: &[RememberedRuntime]) -> Option<&'static str> {
        if self.info.live_restore {
            // A daemon that comes back could leave an old writer beside a new one (rule 5).
            Some("live-restore is on")
        } else if self.info.remapped {
            Some("the engine maps users, so owners would not be the pod's")
        } else if !runtimes.iter().any(|r| r.overlay_volumes) {
            Some("no runtime can use them on this storage root")
        } else {
            None
        }
    }

    fn usable_runtimes(&self) -> Vec<String> {
        let allowed = |name: &String| self.config.allowed_runtimes.as_ref().is_none_or(|list| list.contains(name));
        self.info.runtimes.keys().filter(|n| allowed(n)).cloned().collect()
    }

    async fn probe_runtimes(&self, notes: &mut Vec<String>) -> Result<Vec<RememberedRuntime>, EngineError> {
        let names = self.usable_runtimes();
        let key = self.key(&names);
        if let Some(remembered) = self.remembered(&key).await {
            return Ok(remembered);
        }
        let Some(image) = self.probe_image(notes).await? else { return Ok(Vec::new()) };
        let tries = names.iter().map(|name| self.probe_runtime(name, &image));
        let mut seen = Vec::new();
        let mut certain = true;
        for (name, mut result) in names.iter().zip(futures::future::join_all(tries).await) {
            // All at once may have been too much for its host, or the way to it was interrupted meanwhile.
            if matches!(result, Err(EngineError::Transient { .. } | EngineError::OutcomeUnknown { .. })) {
                result = self.probe_runtime(name, &image).await;
            }
            match result {
                Ok(runtime) => seen.push(runtime),
                Err(e) => {
                    // An engine that is not there is no verdict on its runtimes.
                    self.docker.ping().await.map_err(|e| look("ask the engine whether it is there", e))?;
                    tracing::warn!(runtime = %name, error = %e, "runtime does not work");
                    notes.push(format!("the runtime {name} is not offered: {e}"));
                    certain = false;
                }
            }
        }
        if certain {
            let text = serde_json::to_vec_pretty(&Remembered { key, runtimes: seen.clone() });
            let text = text.map_err(|e| transient(format!("write {FILE}: {e}")))?;
            let storage = self.storage.clone();
            blocking(move || {
                storage.check()?;
                tree::write_durably(storage.root(), FILE, &text).map_err(io("remember the probe"))
            })
            .await?;
        }
        Ok(seen)
    }

    /// Everything the result depends on, in one text: the engine, the runtimes and their executables, the kernel.
    fn key(&self, names: &[String]) -> String {
        let executable = |call: &str| {
            let path = call.split(' ').next().unwrap_or_default();
            std::fs::metadata(path).and_then(|m| Ok((m.len(), m.modified()?))).ok()
        };
        let runtimes: Vec<String> = names
            .iter()
            .map(|n| {
                let call = self.info.runtimes.get(n).cloned().unwrap_or_default();
                format!("{n}: {call} {:?}", executable(&call))
            })
            .collect();
        format!("2 {} {} {} {runtimes:?}", self.info.id, self.info.version, self.info.kernel)
    }

    async fn remembered(&self, key: &str) -> Option<Vec<RememberedRuntime>> {
        let bytes = tokio::fs::read(self.storage.root().join(FILE)).await.ok()?;
        let remembered: Remembered = serde_json::from_slice(&bytes).ok()?;
        (remembered.key == key).then_some(remembered.runtimes)
    }

    async fn probe_image(&self, notes: &mut Vec<String>) -> Result<Option<String>, EngineError> {
        let files = blocking(|| Ok(interpreter())).await?;
        if files.is_empty() {
            notes.push(format!("nothing could be probed: this host has neither busybox nor {}", PROGRAMS.join(", ")));
            return Ok(None);
        }
        self.tiny_image(Role::Probe, files).await.map(Some)
    }

    async fn probe_runtime(&self, runtime: &str, image: &str) -> Result<RememberedRuntime, EngineError> {
        let (files, name) = (self.probe_files().await?, format!("probe-{}", token()));
        let tried = self.probe_volume(runtime, image, &files, &name).await;
        self.scratch_remove(&name).await?;
        let removed = self.docker.remove_volume(&files.definition.name, None::<RemoveVolumeOptions>).await;
        removed.map_err(|e| fail("remove the probe's volume", e))?;
        let place = files.place;
        let root = self.storage.clone();
        blocking(move || root.burn(&place)).await?;
        let (overlay_volumes, root_changes, programs) = tried?;
        let freeze = self.probe_freeze(runtime, image).await?;
        Ok(RememberedRuntime { name: runtime.to_owned(), overlay_volumes, root_changes, freeze, programs })
    }

    /// Makes the directories of a volume to try.
    async fn probe_files(&self) -> Result<ProbeFiles, EngineError> {
        let name = format!("perennial-scratch-probe-{}", token());
        let place = self.storage.scratch().join(&name);
        let (lower, upper, work) = (place.join("set/lower"), place.join("set/upper"), place.join("set/work"));
        let dirs = [lower.clone(), upper.clone(), work.clone()];
        let storage = self.storage.clone();
        blocking(move || {
            storage.check()?;
            for dir in &dirs {
                tree::make_private_dir(dir).map_err(io("make the probe's directories"))?;
            }
            std::fs::create_dir(dirs[0].join("dir")).map_err(io("make the probe's directories"))?;
            for file in ["kept", "gone", "moved", "dir/inner"] {
                std::fs::write(dirs[0].join(file), format!("{file}\n")).map_err(io("write the probe's files"))?;
            }
            Ok(())
        })
        .await?;
        let definition = Definition {
            options: options(&lower, &upper, &work),
            target: "/vol".to_owned(),
            labels: labels::of_scratch(self.config.installation, &name),
            name,
        };
        let request = VolumeCreateRequest {
            name: Some(definition.name.clone()),
            driver: Some("local".to_owned()),
            driver_opts: Some(definition.options.clone()),
            labels: Some(definition.labels.clone()),
            ..VolumeCreateRequest::default()
        };
        self.docker.create_volume(request).await.map_err(|e| fail("make the probe's volume", e))?;
        Ok(ProbeFiles { place, upper, definition })
    }

    /// Runs the script; tells whether the volume worked, whether the changes of the root reached this host, and whether
    /// programs work as far as anybody knows.
    async fn probe_volume(
        &self,
        runtime: &str,
        image: &str,
        files: &ProbeFiles,
        name: &str,
    ) -> Result<(bool, bool, bool), EngineError> {
        let run = script_run(runtime, SCRIPT, Stdin::Closed);
        let id = self.scratch_create(name, image, vec![files.definition.mount()], Some(run.clone())).await?;
        match self.docker.start_container(&id, None::<StartContainerOptions>).await {
            Ok(()) => {
                self.wait_for_end(&id).await?;
                let programs = std::fs::read_to_string(files.upper.join("programs")).unwrap_or_default();
                let failed = programs.trim() == "programs";
                Ok((worked(&files.upper), self.reached_root(&id).await?, !failed))
            }
            // The mount may be what failed: the runtime is tried without it.
            Err(e) => {
                tracing::info!(runtime, error = %e, "a container with an overlay volume does not start");
                let plain = format!("{name}-plain");
                let made = self.scratch_create(&plain, image, Vec::new(), Some(run)).await;
                let reached = match made {
                    Ok(id) => self.run_plain(&id).await,
                    Err(e) => Err(e),
                };
                self.scratch_remove(&plain).await?;
                Ok((false, reached?, true))
            }
        }
    }

    async fn run_plain(&self, id: &str) -> Result<bool, EngineError> {
        let started = self.docker.start_container(id, None::<StartContainerOptions>).await;
        started.map_err(|e| fail("start the probe", e))?;
        self.wait_for_end(id).await?;
        self.reached_root(id).await
    }

    async fn reached_root(&self, id: &str) -> Result<bool, EngineError> {
        let seen = self.look_at(id).await?.ok_or_else(|| transient("the probe went away"))?;
        match self.layer_of(&seen).await? {
            LayerAccess::Local { path, .. } => {
                Ok(path.join("perennial-probe").is_file() && is_whiteout(&path.join(GONE)))
            }
            LayerAccess::Unreachable { .. } => Ok(false),
        }
    }

    async fn wait_for_end(&self, id: &str) -> Result<(), EngineError> {
        let mut ends = Box::pin(self.docker.wait_container(id, None::<WaitContainerOptions>));
        // Its exit code is not asked for: what is on the disk tells more.
        let ended = tokio::time::timeout(PATIENCE, ends.next()).await;
        ended.map(|_| ()).map_err(|_| transient("the probe does not end"))
    }

    async fn probe_freeze(&self, runtime: &str, image: &str) -> Result<bool, EngineError> {
        let name = format!("probe-{}", token());
        let tried = self.try_freeze(runtime, image, &name).await;
        self.scratch_remove(&name).await?;
        tried
    }

    async fn try_freeze(&self, runtime: &str, image: &str, name: &str) -> Result<bool, EngineError> {
        let run = script_run(runtime, "read line", Stdin::Open);
        let id = self.scratch_create(name, image, Vec::new(), Some(run)).await?;
        let started = self.docker.start_container(&id, None::<StartContainerOptions>).await;
        started.map_err(|e| fail("start the probe", e))?;
        if self.docker.pause_container(&id).await.is_err() {
            return Ok(false);
        }
        let frozen = self.look_at(&id).await?.is_some_and(|s| s.status == ContainerStateStatusEnum::PAUSED);
        Ok(frozen && self.docker.unpause_container(&id).await.is_ok())
    }
}

/// A volume to try.
struct ProbeFiles {
    place: PathBuf,
    upper: PathBuf,
    definition: Definition,
}

fn script_run(runtime: &str, script: &str, stdin: Stdin) -> ScratchRun {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    ScratchRun { command, runtime: Some(runtime.to_owned()), stdin, auto_remove: false }
}

fn is_whiteout(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

/// Whether everything the script did is in the volume's upper directory.
fn worked(upper: &Path) -> bool {
    let says = |file: &str, text: &str| std::fs::read_to_string(upper.join(file)).is_ok_and(|t| t.trim() == text);
    let reported = std::fs::read_to_string(upper.join("report")).unwrap_or_default();
    tracing::debug!(report = reported.trim(), "probe");
    reported.trim() == REPORT
        && says("new/renamed", "made")
        && says("new/moved", "moved")
        && ["gone", "moved", "dir"].iter().all(|name| is_whiteout(&upper.join(name)))
}

/// The files that can run the script, as they are on this host; empty when something is missing.
fn interpreter() -> Vec<TinyFile> {
    let busybox = find("busybox");
    let (mut files, mut libraries_of) = (Vec::new(), Vec::new());
    for name in PROGRAMS {
        let Some(program) = find(name).or_else(|| busybox.clone()) else { return Vec::new() };
        files.push(TinyFile { host: program.clone(), inside: Path::new("/bin").join(name) });
        libraries_of.push(program);
    }
    files.push(TinyFile { host: libraries_of[0].clone(), inside: Path::new("/").join(GONE) });
    for library in libraries_of.iter().flat_map(|p| libraries(p)) {
        if !files.iter().any(|f| f.inside == library) {
            files.push(TinyFile { host: library.clone(), inside: library });
        }
    }
    files
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// What the dynamic linker would load for a program; nothing for a static one.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(out) = Command::new("ldd").arg(program).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let word = |line: &str| line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from);
    text.lines().filter(|l| l.starts_with(char::is_whitespace)).filter_map(word).filter(|p| p.is_file()).collect()
}
