//! Requests to the API: tokens, retries, idempotency keys, pages, problems.
//!
//! A POST or DELETE carries a random `Idempotency-Key`, so a connection that breaks after the request was sent is repeated
//! without doing anything twice. A server that cannot be reached at all is reported at once: nothing was sent, and a
//! person who forgot to start it should not wait.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use futures::Stream;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH};
use reqwest::{Certificate, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::Connection;
use super::failure::{Exit, Failure};
use super::session::Session;
use crate::api::wire::{List, Problem};
use crate::config::default_data_dir;
use crate::crypto;

/// Longest time to reach the server.
const CONNECT: Duration = Duration::from_secs(10);
/// How often a request whose connection broke is sent again.
const REPEATS: u32 = 3;
/// Items per page of a list.
const PAGE: &str = "500";

/// The API of one server.
pub struct Client {
    http: reqwest::Client,
    /// The same without a limit to silence: a server says nothing while it receives, or looks at a pod.
    patient: reqwest::Client,
    base: Url,
    pause: Duration,
}

/// An answer, and the version that `If-Match` refers to.
pub struct Versioned<T> {
    /// The answer.
    pub value: T,
    /// Its `ETag`; `None` when the server sent none.
    pub etag: Option<HeaderValue>,
}

/// Where the token came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file.
    File(PathBuf),
    /// `PERENNIAL_TOKEN`.
    Environment,
}

impl Connection {
    /// Reads the token and makes a client; nothing is sent yet.
    pub fn client(&self, session: &Session) -> Result<Client, Failure> {
        let (token, _) = self.token(session)?;
        self.client_with(&token, session)
    }

    /// Makes a client that shows this token.
    pub fn client_with(&self, token: &str, session: &Session) -> Result<Client, Failure> {
        let authorities = self.ca_file.as_deref().map(read_authorities).transpose()?;
        Client::new(&self.server, token, authorities, session)
    }

    /// The token: of `--token-file`, of the environment, else of the data directory.
    pub fn token(&self, session: &Session) -> Result<(String, TokenSource), Failure> {
        if let Some(file) = &self.token_file {
            return Ok((read_token(file)?, TokenSource::File(file.clone())));
        }
        if let Some(token) = session.token.as_deref().map(str::trim).filter(|token| !token.is_empty()) {
            return Ok((token.to_owned(), TokenSource::Environment));
        }
        let directory = self.data_dir.clone().or_else(default_data_dir);
        let directory =
            directory.ok_or_else(|| Failure::usage("HOME is not set", "pass --token-file FILE or --data-dir DIR"))?;
        let file = directory.join("admin-token");
        Ok((read_token(&file)?, TokenSource::File(file)))
    }
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(
            Exit::Forbidden,
            format!("cannot read the token in {}: {error}", file.display()),
            "a server writes it at its first start (perennial serve); \
             pass another one with --token-file FILE, PERENNIAL_TOKEN or --data-dir DIR",
        )
    })?;
    match text.trim() {
        "" => Err(Failure::new(Exit::Forbidden, format!("the token in {} is empty", file.display()), "")),
        token => Ok(token.to_owned()),
    }
}

fn read_authorities(file: &Path) -> Result<Vec<Certificate>, Failure> {
    let hint = "--ca-file and PERENNIAL_CA_FILE name a PEM file with certificates of authorities";
    let wrong = |what: String| Failure::new(Exit::Usage, format!("{}: {what}", file.display()), hint);
    let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(causes(&error)))?;
    if found.is_empty() { Err(wrong("holds no certificate".to_owned())) } else { Ok(found) }
}

impl Client {
    /// A client of the server at `server`, which trusts these authorities; those of this machine when it is `None`.
    pub fn new(
        server: &str,
        token: &str,
        authorities: Option<Vec<Certificate>>,
        session: &Session,
    ) -> Result<Self, Failure> {
        let wrong = |why: String| {
            Failure::usage(
                format!("{server:?} is not the address of a server{why}"),
                "write http://HOST:PORT or https://HOST:PORT",
            )
        };
        let base = Url::parse(server).map_err(|error| wrong(format!(": {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(wrong(String::new()));
        }
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Failure::new(Exit::Forbidden, "the token holds characters that no token has", ""))?;
        bearer.set_sensitive(true);
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, bearer),
            (ACCEPT, HeaderValue::from_static("application/json, application/problem+json")),
        ]);
        let build = |silence: Option<Duration>| {
            let mut http = crypto::web_client()
                .user_agent(concat!("perennial/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers.clone())
                .connect_timeout(CONNECT)
                // The token is for this server and no other.
                .redirect(reqwest::redirect::Policy::none());
            if let Some(silence) = silence {
                http = http.read_timeout(silence);
            }
            if is_loopback(&base) {
                http = http.no_proxy();
            }
            if let Some(authorities) = &authorities {
                http = http.tls_certs_only(authorities.clone());
            }
            http.build().map_err(|error| Failure::internal(format!("set up HTTP: {}", causes(&error))))
        };
        let (http, patient) = (build(Some(session.silence))?, build(None)?);
        Ok(Self { http, patient, base, pause: session.pause })
    }

    /// The server's address.
    pub fn server(&self) -> &Url {
        &self.base
    }

    /// Whether the token travels unencrypted to another machine.
    pub fn is_exposed(&self) -> bool {
        self.base.scheme() == "http" && !is_loopback(&self.base)
    }

    fn url(&self, path: &[&str]) -> Result<Url, Failure> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| {
                Failure::usage("the server's address has no path", "write http://HOST:PORT or https://HOST:PORT")
            })?
            .pop_if_empty()
            .extend(["api", "v1"])
            .extend(path);
        Ok(url)
    }

    /// Asks for one thing.
    pub async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, Failure> {
        Ok(self.get_versioned(path, query).await?.value)
    }

    /// Asks for one thing and its version.
    pub async fn get_versioned<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Versioned<T>, Failure> {
        let answer = self.send(self.http.get(self.url(path)?).query(query)).await?;
        Ok(Versioned { etag: answer.headers.get(ETAG).cloned(), value: answer.parse()? })
    }

    /// Asks for all pages of a list.
    pub async fn list<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        self.pages(path, query, |page| items.extend(page)).await?;
        Ok(items)
    }

    /// Asks for all pages of a list, one after the other.
    pub async fn pages<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        mut each: impl FnMut(Vec<T>),
    ) -> Result<(), Failure> {
        let mut after: Option<String> = None;
        loop {
            let mut query = query.to_vec();
            query.push(("limit", PAGE));
            if let Some(after) = &after {
                query.retain(|(name, _)| *name != "after");
                query.push(("after", after));
            }
            let page: List<T> = self.get(path, &query).await?;
            each(page.items);
            match page.next {
                // A cursor that does not move would be asked for ever.
                Some(next) if Some(&next) != after.as_ref() => after = Some(next),
                _ => return Ok(()),
            }
        }
    }

    /// Asks for something to be done, once, however often it has to be sent.
    pub async fn post<T: DeserializeOwned>(&self, path: &[&str], body: Option<&impl Serialize>) -> Result<T, Failure> {
        self.act(once(self.http.post(self.url(path)?)), body).await
    }

    /// Asks for something that must not be done twice, and is sent once: nobody keeps an answer that has a secret in it.
    pub async fn post_once<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Failure> {
        let answer = receive(self.http.post(self.url(path)?).json(body)).await;
        self.once_answered(answer)?.parse()
    }

    /// Asks for something to be so.
    pub async fn put<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.act(self.http.put(self.url(path)?), None::<&()>).await
    }

    /// Asks for something to be deleted, once, however often it has to be sent.
    pub async fn delete<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        self.act(once(self.http.delete(self.url(path)?)), body).await
    }

    /// Changes something that still is as it was read.
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        etag: Option<HeaderValue>,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.act(matching(self.http.patch(self.url(path)?), etag), Some(body)).await
    }

    /// Puts a document in the place of what is there, if that still is as it was read.
    pub async fn replace<T: DeserializeOwned>(
        &self,
        path: &[&str],
        etag: Option<HeaderValue>,
        (media, text): (&'static str, String),
    ) -> Result<T, Failure> {
        let request = self.http.put(self.url(path)?).header(CONTENT_TYPE, media).body(text);
        self.send(matching(request, etag)).await?.parse()
    }

    /// Removes something, if it still is as it was read.
    pub async fn remove<T: DeserializeOwned>(&self, path: &[&str], etag: Option<HeaderValue>) -> Result<T, Failure> {
        self.send(matching(self.http.delete(self.url(path)?), etag)).await?.parse()
    }

    async fn act<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.send(request).await?.parse()
    }

    /// Asks for one thing with a query that is encoded already.
    pub async fn get_encoded<T: DeserializeOwned>(&self, path: &[&str], query: &str) -> Result<T, Failure> {
        self.send(self.http.get(self.encoded(path, query)?)).await?.parse()
    }

    /// Asks for something that takes the server as long as it takes; the query is encoded already. Sent again it would begin
    /// anew, so it is sent once.
    pub async fn get_patiently<T: DeserializeOwned>(&self, path: &[&str], query: &str) -> Result<T, Failure> {
        let answer = receive(self.patient.get(self.encoded(path, query)?)).await;
        self.once_answered(answer)?.parse()
    }

    /// Begins a download; the query is encoded already.
    pub async fn download(&self, path: &[&str], query: &str) -> Result<Response, Failure> {
        let request = self.http.get(self.encoded(path, query)?).header(ACCEPT, "*/*");
        self.begin(request).await
    }

    /// The same of what may pause for as long as it likes.
    pub async fn download_patiently(&self, path: &[&str], query: &str) -> Result<Response, Failure> {
        let request = self.patient.get(self.encoded(path, query)?).header(ACCEPT, "*/*");
        self.begin(request).await
    }

    /// What became of a download that was begun.
    pub fn broken_off(&self, error: &dyn std::error::Error) -> Failure {
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure::new(
            Exit::Failed,
            format!("the download broke off: {cause}"),
            "what was written is not complete; the server's log says why it broke off",
        )
    }

    fn encoded(&self, path: &[&str], query: &str) -> Result<Url, Failure> {
        let mut url = self.url(path)?;
        url.set_query(Some(query));
        Ok(url)
    }

    /// Sends bytes as they come. They come once, so nothing is sent again.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &str,
        pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<T, Failure> {
        let request = once(self.patient.post(self.encoded(path, query)?));
        let request = request.header(CONTENT_TYPE, "application/octet-stream");
        let answer = receive(request.body(reqwest::Body::wrap_stream(pieces))).await;
        self.once_answered(answer)?.parse()
    }

    fn once_answered(&self, answer: Result<Answer, reqwest::Error>) -> Result<Answer, Failure> {
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if answer.status.is_success() { Ok(answer) } else { Err(self.refused(answer.status, &answer.bytes)) }
    }

    /// Opens the stream of events after `last`.
    pub async fn stream(&self, query: &[(&str, &str)], last: Option<i64>) -> Result<Response, Failure> {
        let mut request =
            self.http.get(self.url(&["events", "stream"])?).query(query).header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last.to_string());
        }
        self.begin(request).await
    }

    /// Sends a request whose answer is read as it comes.
    async fn begin(&self, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        Err(self.refused(status, &bytes))
    }

    /// Sends a request and reads the answer, again when the connection broke after it was made.
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
        let mut repeats = 0;
        loop {
            let attempt = request
                .try_clone()
                .ok_or_else(|| Failure::internal("repeat a request whose body cannot be repeated"))?;
            match receive(attempt).await {
                Ok(answer) if answer.status.is_success() => return Ok(answer),
                Ok(answer) => return Err(self.refused(answer.status, &answer.bytes)),
                Err(error) if repeats < REPEATS && (repeats > 0 || !error.is_connect()) => {
                    repeats += 1;
                    tokio::time::sleep(self.pause).await;
                }
                Err(error) => return Err(self.unreachable(&error)),
            }
        }
    }

    /// Turns an answer that is not good into a failure.
    fn refused(&self, status: StatusCode, bytes: &[u8]) -> Failure {
        match serde_json::from_slice::<Problem>(bytes) {
            Ok(problem) => problem.into(),
            Err(_) => self.foreign(status),
        }
    }

    /// An error answer that is not Perennial's.
    fn foreign(&self, status: StatusCode) -> Failure {
        let problem = Problem { status: status.as_u16(), ..Problem::default() };
        let exit = match Exit::of_problem(&problem) {
            // A proxy's page about a missing path says nothing about a pod (law 5).
            Exit::NotFound => Exit::Unavailable,
            exit => exit,
        };
        Failure::new(
            exit,
            format!("{} answers \"{status}\", which is not an answer of Perennial's API", self.base),
            "check --server; a proxy or another program may be listening there",
        )
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let cause = causes(error);
        let (what, hint) = if cause.contains("certificate") {
            ("no trust in", "if it is your server, name the authority of its certificate with --ca-file FILE")
        } else if cause.contains("InvalidContentType") {
            ("no TLS at", "the server may serve plain HTTP: write http:// in --server")
        } else if error.is_connect() {
            ("cannot connect to", "is the server running? start it with: perennial serve")
        } else if error.is_timeout() {
            ("no answer from", "see the server's log, or: perennial doctor")
        } else if self.base.scheme() == "http" {
            ("the connection broke to", "see the server's log; if it serves TLS, write https:// in --server")
        } else {
            ("the connection broke to", "see the server's log, or: perennial doctor")
        };
        Failure::new(Exit::Unavailable, format!("{what} {}: {cause}", self.base), hint)
    }
}

/// Makes a request depend on what was read.
fn matching(request: reqwest::RequestBuilder, etag: Option<HeaderValue>) -> reqwest::RequestBuilder {
    match etag {
        Some(etag) => request.header(IF_MATCH, etag),
        None => request,
    }
}

/// Makes a request repeatable: the server does it once, however often it arrives.
fn once(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request.header("Idempotency-Key", hex::encode(rand::random::<[u8; 16]>()))
}

/// An answer that was read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Answer {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        // Actions that answer nothing are read as null.
        let bytes = if self.bytes.is_empty() { b"null" } else { self.bytes.as_slice() };
        let mut json = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize(&mut json).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the server's answer is not understood: {error}"),
                "this client and the server may be of different versions: perennial doctor compares them",
            )
        })
    }
}

async fn receive(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, bytes: response.bytes().await?.to_vec() })
}

/// The innermost cause: reqwest's own words repeat the address and say little else.
fn causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}
