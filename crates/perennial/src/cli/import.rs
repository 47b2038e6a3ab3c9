//! `perennial snapshot import`: an archive, or a snapshot of another repository, becomes a snapshot of a pod.
//!
//! Another repository is opened here and not by the server: no request names a place of the server's host.

use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use perennial_core::Error;
use tokio_util::io::ReaderStream;

use super::args::{Connection, ImportArgs};
use super::failure::{Exit, Failure};
use super::session::Context;
use super::target::{self, Among};
use super::{repository, snapshot};
use crate::api::wire::SnapshotOperation;
use crate::library::{self, PodPath};

/// How much is read at a time.
const PIECE: usize = 256 << 10;

/// Bytes on their way to the server.
type Pieces = BoxStream<'static, std::io::Result<Bytes>>;

/// Sends an archive and waits for what becomes of it.
pub async fn run(context: &mut Context<'_>, connection: &Connection, args: ImportArgs) -> Result<(), Failure> {
    let (pieces, size) = source(connection, &args).await?;
    let pod = target::pod(&context.client, &args.pod, Among::Living).await?;
    let mut query = format!("allowDevices={}", args.allow_devices);
    for (key, value) in [("into", &args.into), ("comment", &args.comment)] {
        if let Some(value) = value {
            query = format!("{query}&{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
    }
    let bar = context.out.is_live().then(|| bar(size));
    let shown = bar.clone();
    let pieces = pieces.inspect_ok(move |piece| {
        if let Some(bar) = &shown {
            bar.inc(piece.len() as u64);
        }
    });
    let sent = context.client.upload(&["pods", &pod.id, "snapshots", "import"], &query, pieces).await;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let answer: SnapshotOperation = sent?;
    snapshot::follow(context, answer, args.wait, &format!("import to pod {}", pod.name)).await
}

fn bar(size: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
    let template = match size {
        Some(_) => "{spinner} sending {bytes} of {total_bytes} {elapsed}",
        None => "{spinner} sending {bytes} {elapsed}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// What is sent, and how much it is where that is known.
async fn source(connection: &Connection, args: &ImportArgs) -> Result<(Pieces, Option<u64>), Failure> {
    match (&args.file, &args.repo) {
        (Some(file), None) if file.as_os_str() == "-" => {
            let wrong = |e: std::io::Error| Failure::new(Exit::Invalid, format!("read standard input: {e}"), "");
            let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(wrong)?;
            let input = tokio::fs::File::from_std(input.into());
            Ok((ReaderStream::with_capacity(input, PIECE).boxed(), None))
        }
        (Some(file), None) => opened(file).await,
        (None, Some(_)) => Ok((of_repository(connection, args).await?, None)),
        _ => Err(Failure::usage("no archive", "name a file, - for standard input, or --repo URL")),
    }
}

async fn opened(file: &Path) -> Result<(Pieces, Option<u64>), Failure> {
    let wrong = |e: std::io::Error| Failure::new(Exit::Invalid, format!("read {}: {e}", file.display()), "");
    let opened = tokio::fs::File::open(file).await.map_err(wrong)?;
    let metadata = opened.metadata().await.map_err(wrong)?;
    if metadata.is_dir() {
        let message = format!("{} is a directory", file.display());
        return Err(Failure::usage(message, "pack it: tar -C DIR -c . | perennial snapshot import POD - --into PATH"));
    }
    let size = metadata.is_file().then_some(metadata.len());
    Ok((ReaderStream::with_capacity(opened, PIECE).boxed(), size))
}

/// A snapshot of a repository as an archive.
async fn of_repository(connection: &Connection, args: &ImportArgs) -> Result<Pieces, Failure> {
    let path = PodPath::parse(args.path.as_bytes())
        .map_err(|e| Failure::new(Exit::Invalid, e.to_string(), "write a path of that snapshot, such as /home/me"))?;
    let (connection, args) = (connection.clone(), args.clone());
    let opened = tokio::task::spawn_blocking(move || repository::open_for_import(&connection, &args));
    let (repository, id) = opened.await.map_err(|e| Failure::internal(e.to_string()))??;
    let packed = library::pack(repository, id, path).await;
    let packed = packed.map_err(|failure| {
        let error = Error::from(failure);
        let exit = if matches!(error, Error::NotFound { .. }) { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, error.to_string(), "perennial repository ls lists what a snapshot has")
    })?;
    Ok(packed.into_stream().boxed())
}
