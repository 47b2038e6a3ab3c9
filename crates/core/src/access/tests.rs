use jiff::SignedDuration;

use super::*;

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn after(hours: i64) -> Timestamp {
    now() + SignedDuration::from_hours(hours)
}

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).expect("a tenant")
}

fn tenants(names: &[&str]) -> BTreeSet<TenantId> {
    names.iter().map(|name| tenant(name)).collect()
}

fn holder(role: Role, scopes: &[Scope], members: &[&str]) -> Holder {
    let name = UserName::parse("ann").expect("a name");
    Holder {
        user: User { name: name.clone(), email: None, role, has_password: false, disabled: false, created_at: now() },
        token: Token {
            id: TokenId::from_parts(1, [1; 10]),
            user: name,
            label: String::new(),
            scopes: scopes.iter().copied().collect(),
            tenant: None,
            created_by: "admin".to_owned(),
            created_at: now(),
            expires_at: None,
            last_used_at: None,
            revoked_at: None,
        },
        tenants: tenants(members),
    }
}

fn wanted(scopes: &[Scope]) -> Wanted {
    Wanted { scopes: scopes.iter().copied().collect(), tenant: None, expires_at: None }
}

#[test]
fn a_token_is_good_until_one_of_four_things_happens() {
    let good = holder(Role::User, &Scope::ALL, &["acme"]);
    assert!(good.rights(after(1)).is_some());
    let mut disabled = good.clone();
    disabled.user.disabled = true;
    let mut revoked = good.clone();
    revoked.token.revoked_at = Some(after(5));
    let mut expired = good.clone();
    expired.token.expires_at = Some(after(1));
    for bad in [disabled, revoked, expired.clone()] {
        assert_eq!(bad.rights(after(1)), None, "{bad:?}");
    }
    assert!(expired.rights(now()).is_some());
    let stranger = Holder { tenants: BTreeSet::new(), ..good };
    assert!(!stranger.rights(now()).expect("rights").reach.may_see(&tenant("acme")));
}

#[test]
fn a_user_reaches_their_tenants_and_an_administrator_all() {
    let mut user = holder(Role::User, &Scope::ALL, &["acme", "beta"]);
    assert_eq!(user.rights(now()).expect("rights").reach, Reach::Only(tenants(&["acme", "beta"])));
    user.token.tenant = Some(tenant("acme"));
    assert_eq!(user.rights(now()).expect("rights").reach, Reach::Only(tenants(&["acme"])));
    user.token.tenant = Some(tenant("other"));
    assert_eq!(user.rights(now()).expect("rights").reach, Reach::Only(BTreeSet::new()));
    let mut admin = holder(Role::Admin, &Scope::ALL, &[]);
    assert_eq!(admin.rights(now()), Some(Rights::everything()));
    admin.token.tenant = Some(tenant("acme"));
    let confined = admin.rights(now()).expect("rights");
    assert!(!confined.is_platform() && confined.reach == Reach::Only(tenants(&["acme"])));
}

#[test]
fn the_installation_needs_role_and_scope() {
    let is_platform =
        |role, scopes: &[Scope]| holder(role, scopes, &["acme"]).rights(now()).expect("rights").is_platform();
    assert!(is_platform(Role::Admin, &[Scope::Admin]));
    assert!(!is_platform(Role::Admin, &[Scope::Read, Scope::Operate]));
    assert!(!is_platform(Role::User, &Scope::ALL));
}

#[test]
fn only_rights_without_bounds_are_unbounded() {
    assert!(Rights::everything().is_unbounded());
    let everything = Rights::everything;
    for bounded in [
        Rights { role: Role::User, ..everything() },
        Rights { ends: Some(after(1_000_000)), ..everything() },
        Rights { scopes: BTreeSet::from([Scope::Admin]), ..everything() },
        Rights { tenant: Some(tenant("acme")), ..everything() },
        Rights { reach: Reach::Only(tenants(&["acme"])), ..everything() },
    ] {
        assert!(!bounded.is_unbounded(), "{bounded:?}");
        assert!(everything().covers(&bounded) && !bounded.covers(&everything()), "{bounded:?}");
        assert!(bounded.covers(&bounded.clone()), "{bounded:?}");
    }
}

#[test]
fn a_new_token_stays_within_its_maker() {
    let mut of = holder(Role::User, &[Scope::Read, Scope::Operate], &["acme", "beta"]);
    of.token.expires_at = Some(after(10));
    let maker = of.rights(now()).expect("rights");
    let made = |wanted: Wanted| bounded(&maker, wanted, Role::User, now());
    let inherited = made(wanted(&[Scope::Read])).expect("a token");
    assert_eq!(inherited.expires_at, Some(after(10)));
    let shorter = Wanted { expires_at: Some(after(9)), tenant: Some(tenant("acme")), ..wanted(&[Scope::Operate]) };
    assert_eq!(made(shorter.clone()), Ok(shorter));
    for beyond in [wanted(&[Scope::Admin]), Wanted { expires_at: Some(after(11)), ..wanted(&[Scope::Read]) }] {
        assert!(matches!(made(beyond.clone()), Err(Error::Forbidden { .. })), "{beyond:?}");
    }
    let elsewhere = Wanted { tenant: Some(tenant("other")), ..wanted(&[Scope::Read]) };
    assert!(matches!(made(elsewhere), Err(Error::NotFound { .. })));
    for no_token in [wanted(&[]), Wanted { expires_at: Some(now()), ..wanted(&[Scope::Read]) }] {
        assert!(matches!(made(no_token.clone()), Err(Error::InvalidInput { .. })), "{no_token:?}");
    }
}

#[test]
fn a_confined_token_makes_confined_ones() {
    let mut of = holder(Role::Admin, &[Scope::Read, Scope::Operate], &[]);
    of.token.tenant = Some(tenant("acme"));
    let maker = of.rights(now()).expect("rights");
    let made = bounded(&maker, wanted(&[Scope::Read]), Role::Admin, now()).expect("a token");
    assert_eq!(made.tenant, Some(tenant("acme")));
    let elsewhere = Wanted { tenant: Some(tenant("beta")), ..wanted(&[Scope::Read]) };
    assert!(matches!(bounded(&maker, elsewhere, Role::Admin, now()), Err(Error::NotFound { .. })));
}

#[test]
fn the_scope_of_administrators_is_theirs_and_of_no_tenant() {
    let everything = Rights::everything();
    let made = |wanted, of| bounded(&everything, wanted, of, now());
    assert!(made(wanted(&[Scope::Admin]), Role::Admin).is_ok());
    assert!(matches!(made(wanted(&[Scope::Admin]), Role::User), Err(Error::InvalidInput { .. })));
    let confined = Wanted { tenant: Some(tenant("acme")), ..wanted(&[Scope::Admin]) };
    assert!(matches!(made(confined, Role::Admin), Err(Error::InvalidInput { .. })));
}

#[test]
fn names_and_addresses() {
    for good in ["a", "ann", "ann.lee", "ann+ci@example.org", "7of9"] {
        assert!(UserName::parse(good).is_ok(), "{good}");
    }
    let long = "a".repeat(65);
    for bad in ["", "Ann", "-ann", "ann.", "a b", "a/b", "a:b", "ä", "a\n", long.as_str()] {
        assert!(UserName::parse(bad).is_err(), "{bad:?}");
    }
    assert_eq!(parse_email("Ann@Example.org").unwrap(), "ann@example.org");
    for bad in ["", "ann", "@example.org", "ann@", "a@b@c", "a b@c", "a@b\n"] {
        assert!(parse_email(bad).is_err(), "{bad:?}");
    }
    assert!(check_label("what CI uses").is_ok() && check_label("").is_ok());
    assert!(check_label("a\nb").is_err() && check_label(&"x".repeat(101)).is_err());
}
