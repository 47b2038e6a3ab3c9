//! Webhooks: an event as JSON, signed with a secret that both sides know.
//!
//! `Perennial-Signature: t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY`, so that what was recorded cannot be sent again later. Addresses
//! of private networks are not asked unless that was allowed, and no redirect is followed to one.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use perennial_core::operation::Event;
use reqwest::Url;
use ring::hmac;
use serde_json::json;

use super::{NotifyError, Unsent};
use crate::config::{WebhookSection, secret_in, value};
use crate::store::Delivery;

/// Shortest secret, in bytes: what can be guessed signs nothing.
const SECRET_MIN: usize = 16;

/// A place that events are sent to.
pub struct Webhook {
    /// Its name.
    pub name: String,
    url: Url,
    key: hmac::Key,
    events: Vec<String>,
    allow_private: bool,
}

impl Webhook {
    /// One as the configuration says.
    ///
    /// # Errors
    /// [`NotifyError`] when its secret cannot be read.
    pub fn new(section: &WebhookSection) -> Result<Self, NotifyError> {
        let secret = secret_in("webhooks.secret_file", &section.secret_file)?;
        if secret.len() < SECRET_MIN {
            let problem = format!("the first line of {} is too short", section.secret_file.display());
            return Err(value("webhooks.secret_file", problem, "write at least 16 characters").into());
        }
        let url = Url::parse(&section.url).map_err(|error| NotifyError::Mail(error.to_string()))?;
        Ok(Self {
            name: section.name.clone(),
            url,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            events: section.events.clone(),
            allow_private: section.allow_private,
        })
    }

    /// Whether events of a kind are sent to it.
    #[must_use]
    pub fn wants(&self, kind: &str) -> bool {
        let is_of = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => kind.starts_with(prefix),
            None => kind == pattern,
        };
        self.events.is_empty() || self.events.iter().any(is_of)
    }

    fn signature(&self, body: &str, now: Timestamp) -> String {
        let seconds = now.as_second();
        let tag = hmac::sign(&self.key, format!("{seconds}.{body}").as_bytes());
        format!("t={seconds},v1={}", hex::encode(tag.as_ref()))
    }

    pub(super) async fn send(&self, delivery: &Delivery, event: &Event, now: Timestamp) -> Result<(), Unsent> {
        let line = &event.line;
        let body = json!({
            "id": delivery.id.to_string(),
            "event": event.id,
            "type": delivery.kind,
            "at": line.at,
            "actor": line.actor,
            "tenant": line.tenant.as_str(),
            "pod": line.pod.map(|pod| pod.to_string()),
            "operation": line.operation.map(|operation| operation.to_string()),
            "message": line.message,
        })
        .to_string();
        let client = self.client().await?;
        let request = client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("perennial-event", &delivery.kind)
            .header("perennial-delivery", delivery.id.to_string())
            .header("perennial-signature", self.signature(&body, now))
            .body(body);
        let answer =
            request.send().await.map_err(|error| Unsent::ForNow(crate::causes::describe(&error.without_url())))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            reqwest::StatusCode::GONE => Err(Unsent::ForGood("answered 410 Gone".to_owned())),
            status => Err(Unsent::ForNow(format!("answered {status}"))),
        }
    }

    /// A client that asks only the addresses that were looked at.
    async fn client(&self) -> Result<reqwest::Client, Unsent> {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or(443);
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((name, port)).await;
        let found: Vec<SocketAddr> = found.map_err(|error| Unsent::ForNow(format!("find {host}: {error}")))?.collect();
        if !self.allow_private && found.iter().any(|address| is_private(address.ip())) {
            let problem = format!("{host} is in a private network: say allow_private = true when that is meant");
            return Err(Unsent::ForNow(problem));
        }
        let client = crate::crypto::web_client()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(super::PATIENCE)
            .resolve_to_addrs(host, &found)
            .no_proxy();
        client.build().map_err(|error| Unsent::ForNow(error.to_string()))
    }
}

/// Whether an address is this machine's, or of a network that others cannot reach.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => {
            let [a, b, ..] = four.octets();
            four.is_loopback()
                || four.is_private()
                || four.is_link_local()
                || four.is_unspecified()
                || four.is_broadcast()
                || four.is_multicast()
                || a == 0
                || a >= 240
                // Shared address space (RFC 6598), and benchmarks (RFC 2544).
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (b == 18 || b == 19))
                // IETF protocol assignments (RFC 6890).
                || four.octets()[..3] == [192, 0, 0]
        }
        IpAddr::V6(six) => match six.to_ipv4() {
            Some(four) => is_private(IpAddr::V4(four)),
            None => {
                let first = six.segments()[0];
                // Unique local, link and site local, multicast, and IPv4 behind NAT64, 6to4 or Teredo.
                matches!(first & 0xfe00, 0xfc00)
                    || first & 0xff80 == 0xfe80
                    || six.segments()[..2] == [0x2001, 0]
                    || first & 0xff00 == 0xff00
                    || first == 0x0064
                    || first == 0x2002
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(events: &[&str], allow_private: bool, url: &str) -> Webhook {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a secret that is long enough\nand more\n").unwrap();
        let section = WebhookSection {
            name: "hook".to_owned(),
            url: url.to_owned(),
            secret_file: file.path().to_owned(),
            events: events.iter().map(|text| (*text).to_owned()).collect(),
            allow_private,
        };
        Webhook::new(&section).unwrap()
    }

    #[test]
    fn a_signature_is_of_the_time_and_the_body() {
        let hook = webhook(&[], false, "https://example.org");
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac 'a secret that is long enough'
        let expected = "t=1700000000,v1=";
        let found = hook.signature("{}", at);
        assert!(found.starts_with(expected) && found.len() == expected.len() + 64, "{found}");
        assert_ne!(found, hook.signature("{ }", at));
        assert_ne!(found, hook.signature("{}", Timestamp::from_second(1_700_000_001).unwrap()));
    }

    #[test]
    fn events_are_chosen_by_their_kinds() {
        let hook = webhook(&["subscription.*", "pod.crashed"], false, "https://example.org");
        for (kind, is_wanted) in
            [("subscription.expired", true), ("pod.crashed", true), ("pod.started", false), ("subscriptions", false)]
        {
            assert_eq!(hook.wants(kind), is_wanted, "{kind}");
        }
        assert!(webhook(&[], false, "https://example.org").wants("anything"));
    }

    #[test]
    fn private_addresses_are_known() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:10.0.0.1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "fec0::1",
            "2001:0:1::",
            "192.0.0.9",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }

    #[tokio::test]
    async fn a_private_address_is_not_asked() {
        for url in ["https://127.0.0.1/hook", "https://[::1]/hook", "https://localhost/hook"] {
            let refused = webhook(&[], false, url).client().await.err();
            assert!(matches!(refused, Some(Unsent::ForNow(_))), "{url}");
        }
    }
}
