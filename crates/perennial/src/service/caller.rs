//! Who asks, and what they may see: deny by default (law 10).

use std::collections::BTreeSet;

use jiff::Timestamp;
use perennial_core::Error;
use perennial_core::access::{Reach, Rights, UserName};
use perennial_core::id::TokenId;
use perennial_core::spec::TenantId;

use crate::store::{Asker, TokenHash};

/// What somebody showed to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The token in the file `admin-token` of the data directory.
    AdminToken,
    /// A token of a user.
    Token {
        /// Which.
        id: TokenId,
        /// What it is looked up by when it is asked again whether it is still good.
        hash: TokenHash,
    },
    /// Nothing: this is the server itself, at its housekeeping.
    Server,
}

/// Who asks. Made by [`super::Access`], and by housekeeping for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name in operations and events.
    pub actor: String,
    /// Which user; `None` for the administrator's token, and for the server.
    pub user: Option<UserName>,
    /// What they may do.
    pub rights: Rights,
    /// How they came in.
    pub credential: Credential,
}

impl Caller {
    /// Whoever holds the administrator's token.
    #[must_use]
    pub fn admin() -> Self {
        Self { actor: "admin".to_owned(), user: None, rights: Rights::everything(), credential: Credential::AdminToken }
    }

    /// The server, at work in this name.
    #[must_use]
    pub fn server(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), credential: Credential::Server, ..Self::admin() }
    }

    /// Whether things of this tenant exist for the caller.
    #[must_use]
    pub fn may_see(&self, tenant: &TenantId) -> bool {
        self.rights.reach.may_see(tenant)
    }

    /// The tenant new things belong to when the request names none.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for who has several, [`Error::Forbidden`] for who has none.
    pub fn home(&self) -> Result<TenantId, Error> {
        let Reach::Only(tenants) = &self.rights.reach else { return Ok(TenantId::default_tenant()) };
        let mut all = tenants.iter();
        match (all.next(), all.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err(Error::Forbidden { problem: "you are a member of no tenant".to_owned() }),
            (Some(_), Some(_)) => {
                let names: Vec<&str> = tenants.iter().map(TenantId::as_str).collect();
                Err(Error::invalid("tenant", "is missing", format!("name one of {}", names.join(", "))))
            }
        }
    }

    /// Whose idempotency keys the caller's are.
    #[must_use]
    pub fn owner(&self) -> String {
        self.user.as_ref().map_or_else(|| TenantId::default_tenant().to_string(), |user| format!("user:{user}"))
    }

    /// The token; `None` for the administrator's, and for the server.
    #[must_use]
    pub const fn token(&self) -> Option<TokenId> {
        match &self.credential {
            Credential::Token { id, .. } => Some(*id),
            Credential::AdminToken | Credential::Server => None,
        }
    }

    /// What a commit looks at again: rights may have been lost since the caller was let in.
    #[must_use]
    pub fn asker(&self, at: Timestamp) -> Option<Asker> {
        self.token().map(|token| Asker { token, rights: self.rights.clone(), at })
    }

    /// The tenants that a list is narrowed to; `None` is all. `asked` is the one that the request names.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another's tenant.
    pub fn within(&self, asked: Option<&TenantId>) -> Result<Option<BTreeSet<TenantId>>, Error> {
        if let Some(asked) = asked.filter(|asked| !self.may_see(asked)) {
            return Err(Error::not_found(format!("tenant {asked}")));
        }
        Ok(match &self.rights.reach {
            Reach::All => None,
            Reach::Only(tenants) => Some(tenants.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a tenant")
    }

    fn of(tenants: &[&str]) -> Caller {
        let reach = Reach::Only(tenants.iter().map(|name| tenant(name)).collect());
        Caller { rights: Rights { reach, ..Rights::everything() }, ..Caller::admin() }
    }

    #[test]
    fn a_member_sees_their_tenants_and_nothing_else() {
        let caller = of(&["acme"]);
        assert!(caller.may_see(&tenant("acme")) && !caller.may_see(&tenant("default")));
        assert_eq!(caller.within(None), Ok(Some(BTreeSet::from([tenant("acme")]))));
        assert_eq!(caller.within(Some(&tenant("acme"))), Ok(Some(BTreeSet::from([tenant("acme")]))));
        assert!(matches!(caller.within(Some(&tenant("default"))), Err(Error::NotFound { .. })));
    }

    #[test]
    fn a_tenant_may_be_left_out_by_who_has_one() {
        assert_eq!(of(&["acme"]).home(), Ok(tenant("acme")));
        assert!(matches!(of(&["acme", "beta"]).home(), Err(Error::InvalidInput { field, .. }) if field == "tenant"));
        assert!(matches!(of(&[]).home(), Err(Error::Forbidden { .. })));
        assert_eq!(Caller::admin().home(), Ok(TenantId::default_tenant()));
    }

    #[test]
    fn an_administrator_sees_everything() {
        let caller = Caller::admin();
        assert!(caller.may_see(&tenant("acme")));
        assert_eq!(caller.within(None), Ok(None));
        assert_eq!(caller.within(Some(&tenant("acme"))), Ok(None));
    }
}
