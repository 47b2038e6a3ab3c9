//! Mail: texts, and the server that takes them.
//!
//! A text is a file `KIND.txt`: a first line `Subject: …`, an empty line, and the rest, with `{{ message }}`, `{{ tenant }}`, `{{ pod }}`,
//! `{{ time }}` and `{{ kind }}` in it (Jinja). Those of the directory that `mail.templates` names win over the ones that are shipped;
//! `default.txt` is for kinds that have none of their own.

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use minijinja::{Environment, context};
use perennial_core::operation::Event;
use perennial_core::pod::Pod;

use super::{NotifyError, Unsent};
use crate::config::{MailSection, secret_in};
use crate::store::Delivery;

/// The texts that are shipped.
const SHIPPED: [(&str, &str); 9] = [
    ("default", include_str!("../../mail/default.txt")),
    ("pod.reset-by-admin", include_str!("../../mail/pod.reset-by-admin.txt")),
    ("quota.reached", include_str!("../../mail/quota.reached.txt")),
    ("snapshot.failed", include_str!("../../mail/snapshot.failed.txt")),
    ("subscription.cancelled", include_str!("../../mail/subscription.cancelled.txt")),
    ("subscription.deletion-announced", include_str!("../../mail/subscription.deletion-announced.txt")),
    ("subscription.expired", include_str!("../../mail/subscription.expired.txt")),
    ("subscription.pod-deleted", include_str!("../../mail/subscription.pod-deleted.txt")),
    ("subscription.pod-gone", include_str!("../../mail/subscription.pod-gone.txt")),
];

/// Writes to people.
pub struct Mailer {
    server: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    texts: Environment<'static>,
}

impl Mailer {
    /// One that writes as the configuration says; `None` when it says nothing.
    ///
    /// # Errors
    /// [`NotifyError`] when a file or a text cannot be used.
    pub fn new(section: &MailSection) -> Result<Option<Self>, NotifyError> {
        let (Some(url), Some(from)) = (&section.server, &section.from) else { return Ok(None) };
        let bad = |error: &dyn std::fmt::Display| NotifyError::Mail(error.to_string());
        let mut server = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(|error| bad(&error))?;
        server = server.timeout(Some(super::PATIENCE));
        if let (Some(user), Some(file)) = (&section.user, &section.password_file) {
            let password = secret_in("mail.password_file", file)?;
            server = server.credentials(Credentials::new(user.clone(), password));
        }
        let mut texts = Environment::new();
        for (name, text) in SHIPPED {
            texts.add_template(name, text).map_err(|error| bad(&error))?;
        }
        if let Some(directory) = &section.templates {
            let unreadable = |path: &std::path::Path, source| NotifyError::File {
                key: "mail.templates",
                path: path.display().to_string(),
                source,
            };
            for entry in std::fs::read_dir(directory).map_err(|source| unreadable(directory, source))? {
                let path = entry.map_err(|source| unreadable(directory, source))?.path();
                let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".txt")) else {
                    continue;
                };
                let text = std::fs::read_to_string(&path).map_err(|source| unreadable(&path, source))?;
                texts.add_template_owned(name.to_owned(), text).map_err(|error| bad(&error))?;
            }
        }
        let mailer = Self { server: server.build(), from: from.parse().map_err(|error| bad(&error))?, texts };
        // A text that cannot be used is told at the start and not when it is needed.
        let kinds: Vec<String> = mailer.texts.templates().map(|(name, _)| name.to_owned()).collect();
        for kind in kinds {
            mailer.text(&kind, minijinja::Value::from(())).map_err(NotifyError::Mail)?;
        }
        Ok(Some(mailer))
    }

    /// Subject and text.
    fn text(&self, kind: &str, facts: minijinja::Value) -> Result<(String, String), String> {
        let template = self.texts.get_template(kind).or_else(|_| self.texts.get_template("default"));
        let text = template.and_then(|template| template.render(facts)).map_err(|error| error.to_string())?;
        let parts = text.strip_prefix("Subject: ").and_then(|rest| rest.split_once("\n\n"));
        let (subject, body) = parts.ok_or_else(|| format!("{kind}.txt does not begin with \"Subject: …\""))?;
        if subject.contains('\n') {
            return Err(format!("the subject in {kind}.txt has several lines"));
        }
        Ok((subject.to_owned(), body.to_owned()))
    }

    pub(super) async fn send(
        &self,
        address: &str,
        delivery: &Delivery,
        event: &Event,
        pod: Option<&Pod>,
    ) -> Result<(), Unsent> {
        let facts = context! {
            message => event.line.message.as_str(),
            tenant => event.line.tenant.as_str(),
            pod => pod.map(|pod| pod.name.as_str()),
            time => event.line.at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            kind => delivery.kind.as_str(),
        };
        let (subject, body) = self.text(&delivery.kind, facts).map_err(Unsent::ForGood)?;
        let host = self.from.email.domain();
        let message = Message::builder()
            .from(self.from.clone())
            .to(address.parse().map_err(|error| Unsent::ForGood(format!("{address:?} is no address: {error}")))?)
            // The same for every try, so that a second one can be told by it.
            .message_id(Some(format!("<{}@{host}>", delivery.id)))
            .subject(subject)
            .header(ContentType::TEXT_PLAIN)
            .body(body)
            .map_err(|error| Unsent::ForGood(error.to_string()))?;
        match self.server.send(message).await {
            Ok(_) => Ok(()),
            // Also what a server calls permanent: an account that is mended, a limit that is over. The number of tries bounds it.
            Err(error) => Err(Unsent::ForNow(crate::causes::describe(&error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_that_is_shipped_can_be_used() {
        let section = MailSection {
            server: Some("smtp://localhost".to_owned()),
            from: Some("p@example.org".to_owned()),
            ..MailSection::default()
        };
        let mailer = Mailer::new(&section).unwrap().unwrap();
        for kind in super::super::MAILED {
            let facts = context! { message => "what happened", tenant => "acme", pod => "wf", time => "now", kind };
            let (subject, body) = mailer.text(kind, facts).unwrap();
            assert!(
                (subject.contains("wf") || subject.contains("acme")) && body.contains("what happened"),
                "{kind}: {subject}\n{body}"
            );
        }
        let (subject, _) = mailer.text("something.else", context! { kind => "something.else" }).unwrap();
        assert!(subject.contains("something.else"));
    }

    #[test]
    fn a_text_of_ones_own_wins_and_a_bad_one_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let section = MailSection {
            server: Some("smtp://localhost".to_owned()),
            from: Some("p@example.org".to_owned()),
            templates: Some(directory.path().to_owned()),
            ..MailSection::default()
        };
        let write = |text: &str| std::fs::write(directory.path().join("subscription.expired.txt"), text).unwrap();
        write("Subject: Vorbei: {{ pod }}\n\nHallo.\n");
        let mailer = Mailer::new(&section).unwrap().unwrap();
        assert_eq!(mailer.text("subscription.expired", context! { pod => "wf" }).unwrap().0, "Vorbei: wf");
        for bad in ["no subject", "Subject: a", "Subject: {{ pod", "Subject: a\nb\n\nc"] {
            write(bad);
            assert!(Mailer::new(&section).is_err(), "{bad}");
        }
    }
}
