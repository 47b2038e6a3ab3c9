//! Who asks, and what they may see: deny by default (law 10).

use perennial_core::Error;
use perennial_core::spec::TenantId;

/// What a caller may see and do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Admin,
    /// What belongs to this tenant.
    Tenant(TenantId),
}

/// Who asks. Made by the authentication of the API only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name in operations and events.
    pub actor: String,
    /// What they may see and do.
    pub scope: Scope,
}

impl Caller {
    /// The administrator who holds the admin token.
    #[must_use]
    pub fn admin() -> Self {
        Self { actor: "admin".to_owned(), scope: Scope::Admin }
    }

    /// Whether things of this tenant exist for the caller.
    #[must_use]
    pub fn may_see(&self, tenant: &TenantId) -> bool {
        match &self.scope {
            Scope::Admin => true,
            Scope::Tenant(own) => own == tenant,
        }
    }

    /// The tenant new things belong to when the request names none; also the scope of idempotency keys.
    #[must_use]
    pub fn home(&self) -> TenantId {
        match &self.scope {
            Scope::Admin => TenantId::default_tenant(),
            Scope::Tenant(own) => own.clone(),
        }
    }

    /// Narrows a list to what the caller may see; `None` is everything.
    ///
    /// # Errors
    /// [`Error::NotFound`] for another's tenant.
    pub fn restrict(&self, asked: Option<TenantId>) -> Result<Option<TenantId>, Error> {
        match (&self.scope, asked) {
            (Scope::Admin, asked) => Ok(asked),
            (Scope::Tenant(own), None) => Ok(Some(own.clone())),
            (Scope::Tenant(own), Some(asked)) if *own == asked => Ok(Some(asked)),
            (Scope::Tenant(_), Some(asked)) => Err(Error::not_found(format!("tenant {asked}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a tenant")
    }

    #[test]
    fn a_tenant_sees_its_own_and_nothing_else() {
        let caller = Caller { actor: "ann".into(), scope: Scope::Tenant(tenant("acme")) };
        assert!(caller.may_see(&tenant("acme")) && !caller.may_see(&tenant("default")));
        assert_eq!(caller.home(), tenant("acme"));
        assert_eq!(caller.restrict(None), Ok(Some(tenant("acme"))));
        assert_eq!(caller.restrict(Some(tenant("acme"))), Ok(Some(tenant("acme"))));
        assert!(matches!(caller.restrict(Some(tenant("default"))), Err(Error::NotFound { .. })));
    }

    #[test]
    fn an_administrator_sees_everything() {
        let caller = Caller::admin();
        assert!(caller.may_see(&tenant("acme")));
        assert_eq!(caller.restrict(None), Ok(None));
        assert_eq!(caller.restrict(Some(tenant("acme"))), Ok(Some(tenant("acme"))));
    }
}
