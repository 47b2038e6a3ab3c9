//! `perennial recovery-kit`: a file that is enough to read the repositories when the host is gone.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::human::instant;
use super::out::clean;
use super::session::Context;
use crate::api::wire::{RecoveryKit, RecoveryRepository};

/// What was written, without what is secret.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    /// Where; null for standard output.
    file: Option<PathBuf>,
    /// Whose keys are in it.
    tenants: Vec<String>,
}

/// Runs `recovery-kit`.
pub async fn run(context: &mut Context<'_>, file: Option<PathBuf>) -> Result<(), Failure> {
    let default = || PathBuf::from(format!("perennial-recovery-kit-{}.txt", context.now().strftime("%Y%m%dT%H%M%SZ")));
    let path = file.unwrap_or_else(default);
    if path == Path::new("-") {
        let kit = fetch(context).await?;
        return context.out.data(text(&kit).as_bytes());
    }
    // Before the server is asked, which takes a kit that was handed out for one that is kept.
    let target = Target::create(path)?;
    let kit = fetch(context).await?;
    let file = target.write(&text(&kit))?;
    let firsts = kit.repositories.iter().filter(|repository| !repository.replica);
    let tenants = firsts.map(|repository| repository.tenant.clone()).collect();
    context.show(&Written { file: Some(file), tenants }, |written, _, _| {
        let file = written.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        format!(
            "{} holds the keys of: {}\nMove it off this host now, to where only you can read it; keep no copy here.",
            clean(&file),
            clean(&written.tenants.join(", "))
        )
    })
}

async fn fetch(context: &Context<'_>) -> Result<RecoveryKit, Failure> {
    context.client.post(&["recovery-kit"], None::<&()>).await
}

/// A file that was made for the kit; removed again unless the kit gets into it.
struct Target {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Target {
    fn create(path: PathBuf) -> Result<Self, Failure> {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok(Self { file, path, kept: false }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(Failure::new(
                Exit::Conflict,
                format!("{} exists, and may be the only copy of a key", path.display()),
                "choose another with --file, or move that one away",
            )),
            Err(error) => Err(Failure::new(
                Exit::Usage,
                format!("{} cannot be written: {error}", path.display()),
                "choose another place with --file",
            )),
        }
    }

    fn write(mut self, text: &str) -> Result<PathBuf, Failure> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|error| {
            Failure::new(Exit::Failed, format!("write {}: {error}", self.path.display()), "run it again elsewhere")
        })?;
        self.kept = true;
        Ok(std::mem::take(&mut self.path))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.kept && !self.path.as_os_str().is_empty() {
            // An empty file would only stand in the way of the next try.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether a repository is a directory of the server's host.
fn is_directory(location: &str) -> bool {
    location.starts_with('/')
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The kit for whoever opens it in a bad hour: what it is, what opens what, and commands to copy.
fn text(kit: &RecoveryKit) -> String {
    let mut text = format!(
        "PERENNIAL RECOVERY KIT\n\n\
         Installation  {}\n\
         Host          {}\n\
         Data          {}\n\
         Made          {} by Perennial {}\n\n\
         Whoever has this file and a copy of a repository can read every snapshot in it; without it, or the files in\n\
         keys/ of the data directory, nobody can. Keep it off the host, where only you can read it. It stays valid:\n\
         make a new one when `perennial doctor` says that a key is missing from it.\n",
        kit.installation,
        kit.host,
        kit.data_dir,
        instant(kit.made_at),
        kit.version,
    );
    for repository in &kit.repositories {
        text.push_str(&section(kit, repository));
    }
    text.push_str(
        "\n\nWHAT IS IN A SNAPSHOT\n\n\
         Snapshots with a tag `pod:ID` are pods; `restic snapshots --tag pod:ID` lists those of one. pod.json says which\n\
         pod that was, and its image. volumes/NAME holds the files of a volume, system/ what the pod changed elsewhere.\n\
         On the backend `overlay` (see pod.json) volumes hold what the pod changed, removed/NAME lists what it deleted,\n\
         separated by NUL bytes, and the rest is in the image: the snapshot with the tag `image:sha256:...`.\n\n\n\
         GOING ON WITH PERENNIAL ON ANOTHER HOST\n\n\
         Bring the repositories and, if you have one, a copy of perennial.db. Without that the snapshots can be read as\n\
         above, and Perennial does not know the pods.\n\n    \
         umask 077\n    \
         mkdir -p NEW/keys NEW/repositories\n    \
         cp COPY/perennial.db NEW/\n"
    );
    let mut elsewhere = "";
    for RecoveryRepository { tenant, location, password, .. } in kit.repositories.iter().filter(|one| !one.replica) {
        if is_directory(location) {
            text.push_str(&format!("    cp -a COPY/repositories/{tenant} NEW/repositories/\n"));
        } else {
            elsewhere = location.strip_suffix(&format!("/{tenant}")).unwrap_or(location);
        }
        text.push_str(&format!("    printf '%s\\n' {} > NEW/keys/{tenant}\n", quoted(&password.0)));
    }
    text.push_str("    perennial serve --data-dir NEW");
    if !elsewhere.is_empty() {
        text.push_str(&format!(" --repository {}", quoted(elsewhere)));
    }
    text.push_str(
        "\n\n\
         Stopped pods start as if nothing had happened. Pods that were not stopped say `DataLost`: what was in their\n\
         volumes is gone with the host, and `perennial pod restore POD SNAPSHOT` brings back the newest copy.\n",
    );
    if kit.repositories.iter().any(|one| one.replica) {
        text.push_str(
            "\nWhen the repositories themselves are lost, a replica takes their place: write the password of the replica to\n\
             NEW/keys/TENANT instead, and name the place of the replicas, without the tenant at its end, with --repository.\n\
             The old server, should it come back, must not write there, too. Before the first start write that place into\n\
             NEW/perennial.toml (location = \"PLACE\" below [repository]), change the password,\n\n    \
             perennial repository change-password TENANT --data-dir NEW\n\n\
             and give the store new credentials: a server that runs has the repository open and asks for no password.\n",
        );
    }
    text
}

fn section(kit: &RecoveryKit, repository: &RecoveryRepository) -> String {
    let RecoveryRepository { tenant, location, password, replica } = repository;
    let heading = if *replica { "REPLICA OF THE REPOSITORY OF TENANT" } else { "REPOSITORY OF TENANT" };
    let (place, whose) = if is_directory(location) {
        (
            format!("{location} on {}", kit.host),
            "On any machine that has the repository, or a copy of it (change the first line to where it is):",
        )
    } else {
        (
            location.clone(),
            "On any machine, with the credentials of the store, which are not in this file (for S3 AWS_ACCESS_KEY_ID and\n\
         AWS_SECRET_ACCESS_KEY, for Azure AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_KEY in the environment):",
        )
    };
    format!(
        "\n\n{heading} {tenant}\n\n\
         Format        restic, version 2: any restic from 0.14 on reads it, without Perennial\n\
         Location      {place}\n\
         Password      {}\n\n\
         {whose}\n\n    \
         export RESTIC_REPOSITORY={}\n    \
         export RESTIC_PASSWORD={}\n    \
         restic snapshots\n    \
         restic restore SNAPSHOT --target restored\n\n\
         SNAPSHOT is an id of the first column that `restic snapshots` prints. As root, files get back their owners.\n",
        password.0,
        quoted(location),
        quoted(&password.0),
    )
}
