//! Databases to test on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use perennial::store::{Store, StoreError};
use perennial_core::fault::{NoTap, Tap};

/// A database that is gone with this value.
pub struct Database {
    pub url: String,
    directory: Option<tempfile::TempDir>,
}

impl Database {
    /// An empty SQLite file; its path has characters that mean something in a URL.
    pub fn sqlite() -> Self {
        let directory = tempfile::Builder::new().prefix("store 50%?#").tempdir().unwrap();
        Self { url: format!("sqlite:{}", directory.path().join("p.db").display()), directory: Some(directory) }
    }

    pub fn memory() -> Self {
        Self { url: "sqlite::memory:".to_owned(), directory: None }
    }

    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_ref().map(tempfile::TempDir::path)
    }

    pub async fn open(&self) -> Store {
        self.open_with(Arc::new(NoTap)).await.unwrap()
    }

    pub async fn open_with(&self, tap: Arc<dyn Tap>) -> Result<Store, StoreError> {
        Store::open(&self.url, tap).await
    }

    /// The URL for a connection beside the store.
    pub fn raw_url(&self) -> String {
        self.url.replace('%', "%25").replace('?', "%3F").replace('#', "%23")
    }
}

/// A PostgreSQL that is stopped and deleted with this value.
pub struct Cluster {
    url: String,
    directory: PathBuf,
    _parent: tempfile::TempDir,
}

impl Cluster {
    pub fn start() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::Builder::new().prefix("store-pg-").tempdir().unwrap();
        // The server does not run as root and has to get in.
        std::fs::set_permissions(parent.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let directory = parent.path().join("pg");
        let output = Command::new(script()).arg("start").arg(&directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let url = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Self { url, directory, _parent: parent }
    }

    /// An empty database of this name.
    pub async fn database(&self, name: &str) -> Database {
        sqlx::any::install_default_drivers();
        let pool = sqlx::AnyPool::connect(&self.url).await.unwrap();
        // Names of cases are identifiers; Postgres cuts names at 63 bytes.
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
        pool.close().await;
        let (server, _) = self.url.rsplit_once('/').unwrap();
        Database { url: format!("{server}/{name}"), directory: None }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("stop").arg(&self.directory).status();
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/postgres.sh")
}
