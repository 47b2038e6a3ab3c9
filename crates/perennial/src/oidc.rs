//! An OpenID provider that vouches for people: the authorization code flow with PKCE.
//!
//! Sources: OpenID Connect Core 1.0 <https://openid.net/specs/openid-connect-core-1_0.html>, RFC 7636 (PKCE), RFC 9207 (`iss` in answers).
//! What a token is worth is checked by the library: signature, issuer, audience, times and nonce.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use openidconnect::core::{
    CoreAuthenticationFlow, CoreClient, CoreClientAuthMethod, CoreErrorResponseType, CoreProviderMetadata,
    CoreTokenResponse, CoreUserInfoClaims,
};
use openidconnect::{
    AsyncHttpClient, AuthType, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret, CsrfToken,
    EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, IssuerUrl, Nonce,
    OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope,
    StandardErrorResponse, TokenResponse as _,
};
use perennial_core::access::parse_email;
use tokio::sync::Mutex;

use crate::causes::describe;
use crate::config::{ConfigError, OidcSection, is_private, secret_in, value};

/// Where the provider sends people back to, below the public address.
pub const CALLBACK: &str = "/api/v1/sessions/oidc/callback";
/// So long one request to the provider may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// So long everything may take that somebody waits for.
const ALL_IN_ALL: Duration = Duration::from_secs(20);
/// So long it is remembered what the provider says of itself.
const FRESH: Duration = Duration::from_secs(300);
/// So long it is remembered that it does not answer.
const REMEMBERED: Duration = Duration::from_secs(2);
/// Longest name that it has for somebody, in bytes (OpenID Connect Core 1.0, section 2).
const SUBJECT_MAX: usize = 255;
const HINT: &str = "perennial.example.toml shows how the provider is named";
/// Longest answer of a provider that is read, in bytes.
const ANSWER_MAX: usize = 1 << 20;

type Client =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// Why somebody was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OidcError {
    /// The provider cannot be asked now, or says what cannot be understood.
    #[error("the OpenID provider cannot be used: {0}")]
    Unavailable(String),
    /// It did not vouch for anybody.
    #[error("the OpenID provider vouches for nobody: {0}")]
    Refused(String),
}

/// What a browser keeps between going to the provider and coming back, in a cookie that only this server's pages get.
///
/// It holds nothing of the server: whoever changes their own spoils their own sign-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What the provider sends back with the browser.
    pub state: String,
    /// What the provider signs.
    pub nonce: String,
    /// What proves to the provider that whoever brings the code asked for it.
    pub verifier: String,
}

/// Somebody the provider vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Who: the provider's address, a space, and what it calls them. It never becomes anybody else's.
    pub identity: String,
    /// Their address, when the provider says that it was looked at; in lower case, and ASCII.
    pub email: Option<String>,
}

/// The provider.
pub struct Provider {
    issuer: IssuerUrl,
    client_id: ClientId,
    secret: Option<ClientSecret>,
    redirect: RedirectUrl,
    http: Http,
    known: Mutex<Known>,
}

/// What is known of the provider.
#[derive(Default)]
struct Known {
    /// What it said of itself, and when.
    found: Option<(Instant, CoreProviderMetadata)>,
    /// Why it did not say it since, and when.
    failed: Option<(Instant, String)>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("issuer", &self.issuer.as_str()).finish_non_exhaustive()
    }
}

impl Provider {
    /// The one of the configuration; `None` when it names none. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key that cannot be used.
    pub fn new(section: &OidcSection) -> Result<Option<Self>, ConfigError> {
        let (Some(issuer), Some(client), Some(public)) = (&section.issuer, &section.client_id, &section.public_url)
        else {
            return Ok(None);
        };
        let secret = match &section.client_secret_file {
            Some(path) => Some(secret_in("oidc.client_secret_file", path)?),
            None => None,
        };
        let http = crate::crypto::web_client().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
        Ok(Some(Self {
            issuer: IssuerUrl::new(issuer.clone()).map_err(|error| value("oidc.issuer", error.to_string(), HINT))?,
            client_id: ClientId::new(client.clone()),
            secret: secret.map(ClientSecret::new),
            redirect: RedirectUrl::new(format!("{}{CALLBACK}", public.trim_end_matches('/')))
                .map_err(|error| value("oidc.public_url", error.to_string(), HINT))?,
            http: Http(http.build().map_err(|error| value("oidc", describe(&error), HINT))?),
            known: Mutex::default(),
        }))
    }

    /// Its address.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.issuer.as_str()
    }

    /// Where to send a browser, and what it has to bring back.
    ///
    /// # Errors
    /// [`OidcError::Unavailable`].
    pub async fn begin(&self) -> Result<(String, Kept), OidcError> {
        let client = in_time(self.client(FRESH)).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        // The scope openid comes by itself.
        let (url, state, nonce) = client
            .authorize_url(flow, CsrfToken::new_random, Nonce::new_random)
            .add_scope(Scope::new("email".to_owned()))
            .set_pkce_challenge(challenge)
            .url();
        let kept = Kept { state: state.into_secret(), nonce: nonce.secret().clone(), verifier: verifier.into_secret() };
        Ok((url.into(), kept))
    }

    /// Whom the provider vouches for with a code that came back with a browser that kept this.
    ///
    /// # Errors
    /// [`OidcError`].
    pub async fn finish(&self, code: String, kept: Kept) -> Result<Vouched, OidcError> {
        in_time(self.finish_at_leisure(code, kept)).await
    }

    async fn finish_at_leisure(&self, code: String, kept: Kept) -> Result<Vouched, OidcError> {
        let client = self.client(FRESH).await?;
        let incomplete = |error: openidconnect::ConfigurationError| OidcError::Unavailable(describe(&error));
        let exchange = client.exchange_code(AuthorizationCode::new(code)).map_err(incomplete)?;
        let exchange = exchange.set_pkce_verifier(PkceCodeVerifier::new(kept.verifier));
        let answer: CoreTokenResponse =
            exchange.request_async(&self.http).await.map_err(|error| not_exchanged(&error))?;
        let token = answer.id_token().ok_or_else(|| OidcError::Refused("there is no ID token".to_owned()))?;
        let nonce = Nonce::new(kept.nonce);
        let claims = match token.claims(&client.id_token_verifier(), &nonce) {
            // It may have got another key since it was asked.
            Err(ClaimsVerificationError::SignatureVerification(_)) => {
                let client = self.client(Duration::ZERO).await?;
                token.claims(&client.id_token_verifier(), &nonce)
            }
            other => other,
        };
        let claims = claims.map_err(|error| OidcError::Refused(describe(&error)))?;
        let subject = claims.subject();
        if subject.len() > SUBJECT_MAX || subject.chars().any(char::is_control) {
            return Err(OidcError::Refused("what it calls them is no name".to_owned()));
        }
        let mut address = (claims.email().cloned(), claims.email_verified());
        if address.0.is_none() && client.user_info_url().is_some() {
            // OpenID Connect Core 1.0, section 5.4: there it is when there is an access token.
            let asked = client.user_info(answer.access_token().clone(), Some(subject.clone())).map_err(incomplete)?;
            let told: CoreUserInfoClaims =
                asked.request_async(&self.http).await.map_err(|error| OidcError::Unavailable(describe(&error)))?;
            address = (told.email().cloned(), told.email_verified());
        }
        let (email, is_verified) = address;
        // Letters beyond ASCII are the same as others to somebody, and nobody agrees to whom.
        let email = email.filter(|email| is_verified == Some(true) && email.is_ascii());
        Ok(Vouched {
            identity: format!("{} {}", self.issuer.as_str(), subject.as_str()),
            // Some say of nothing, too, that they have looked at it.
            email: email.and_then(|email| parse_email(&email).ok()),
        })
    }

    /// A client that knows what the provider said of itself, at most so long ago where it answers.
    async fn client(&self, fresh: Duration) -> Result<Client, OidcError> {
        let mut known = self.known.lock().await;
        let is_fresh = known.found.as_ref().is_some_and(|(since, _)| since.elapsed() < fresh);
        if !is_fresh {
            if let Some((since, problem)) = &known.failed
                && since.elapsed() < REMEMBERED
            {
                return Err(OidcError::Unavailable(problem.clone()));
            }
            match self.discover().await {
                Ok(found) => *known = Known { found: Some((Instant::now(), found)), failed: None },
                Err(problem) => {
                    known.failed = Some((Instant::now(), problem.clone()));
                    return Err(OidcError::Unavailable(problem));
                }
            }
        }
        let Some((_, metadata)) = &known.found else {
            return Err(OidcError::Unavailable("nothing is known of it".to_owned()));
        };
        let is_given_in_body = metadata.token_endpoint_auth_methods_supported().is_some_and(|ways| {
            !ways.contains(&CoreClientAuthMethod::ClientSecretBasic)
                && ways.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let client = CoreClient::from_provider_metadata(metadata.clone(), self.client_id.clone(), self.secret.clone());
        let client = client.set_redirect_uri(self.redirect.clone());
        Ok(if is_given_in_body { client.set_auth_type(AuthType::RequestBody) } else { client })
    }

    async fn discover(&self) -> Result<CoreProviderMetadata, String> {
        let found = CoreProviderMetadata::discover_async(self.issuer.clone(), &self.http).await;
        let found = found.map_err(|error| describe(&error))?;
        let addresses = [
            Some(found.authorization_endpoint().url()),
            found.token_endpoint().map(|endpoint| endpoint.url()),
            found.userinfo_endpoint().map(|endpoint| endpoint.url()),
            Some(found.jwks_uri().url()),
        ];
        // What is signed can only be checked with keys that nobody on the way exchanged.
        if let Some(url) = addresses.into_iter().flatten().find(|url| !is_private(url)) {
            return Err(format!("it names {url}, where others can read along"));
        }
        Ok(found)
    }
}

/// Ends with what cannot wait longer: somebody sits before a browser, and others want their turn.
async fn in_time<T>(work: impl Future<Output = Result<T, OidcError>>) -> Result<T, OidcError> {
    let late = |_| Err(OidcError::Unavailable("it does not answer in time".to_owned()));
    tokio::time::timeout(ALL_IN_ALL, work).await.unwrap_or_else(late)
}

type ExchangeError = RequestTokenError<HttpError, StandardErrorResponse<CoreErrorResponseType>>;

fn not_exchanged(error: &ExchangeError) -> OidcError {
    match error {
        // Whatever else it says is about this server, and not about who signs in.
        RequestTokenError::ServerResponse(answer) if *answer.error() == CoreErrorResponseType::InvalidGrant => {
            OidcError::Refused("the code is good for nothing".to_owned())
        }
        RequestTokenError::ServerResponse(answer) => OidcError::Unavailable(answer.to_string()),
        other => OidcError::Unavailable(describe(other)),
    }
}

/// What asks the provider: no redirects are followed, and no answer is read without end.
struct Http(reqwest::Client);

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error(transparent)]
    Asked(#[from] reqwest::Error),
    #[error(transparent)]
    Answer(#[from] openidconnect::http::Error),
    #[error("the answer is too long")]
    TooLong,
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let request = reqwest::Request::try_from(request)?;
            let answer = self.0.execute(request).await.map_err(reqwest::Error::without_url)?;
            let mut made = openidconnect::http::Response::builder().status(answer.status());
            for (name, value) in answer.headers() {
                made = made.header(name, value);
            }
            let mut body = Vec::new();
            let mut parts = answer.bytes_stream();
            while let Some(part) = parts.next().await {
                body.extend_from_slice(&part.map_err(reqwest::Error::without_url)?);
                if body.len() > ANSWER_MAX {
                    return Err(HttpError::TooLong);
                }
            }
            Ok(made.body(body)?)
        })
    }
}
