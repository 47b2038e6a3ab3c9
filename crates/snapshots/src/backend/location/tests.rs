use super::*;

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "AWS_ACCESS_KEY_ID" => "id",
        "AWS_SECRET_ACCESS_KEY" => "hunter2",
        "AZURE_ACCOUNT_NAME" => "account1",
        "AZURE_ACCOUNT_KEY" => "aHVudGVyMg==",
        // Set and empty is not set.
        "AWS_SESSION_TOKEN" | "AWS_REGION" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Location, InvalidLocation> {
    Location::parse(text, environment)
}

fn parse_s3(text: &str) -> S3Location {
    match parse(text).unwrap() {
        Location::S3(at) => at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn addresses_are_read_as_restic_reads_them() {
    for (text, path) in [("/a/b", "/a/b"), ("local:/a b", "/a b"), ("rel/x", "rel/x"), ("./s3:x", "./s3:x")] {
        assert_eq!(parse(text).unwrap(), Location::Local(path.into()), "{text}");
    }
    let table = [
        ("s3:https://h.example:9000/bucket/a/b/", "https://h.example:9000/", "bucket", "a/b", "us-east-1"),
        ("s3:http://127.0.0.1:1/bucket", "http://127.0.0.1:1/", "bucket", "", "us-east-1"),
        (
            "s3:s3.eu-central-1.amazonaws.com/b.c-d/p",
            "https://s3.eu-central-1.amazonaws.com/",
            "b.c-d",
            "p",
            "eu-central-1",
        ),
        ("s3://s3.amazonaws.com/bucket/p", "https://s3.amazonaws.com/", "bucket", "p", "us-east-1"),
        ("s3:https://h/bucket/50%25%20%C3%BC", "https://h/", "bucket", "50% ü", "us-east-1"),
        ("s3:h/bucket/50%25", "https://h/", "bucket", "50%25", "us-east-1"),
    ];
    for (text, endpoint, bucket, prefix, region) in table {
        let at = parse_s3(text);
        let found = (at.endpoint.as_str(), at.bucket.as_str(), at.prefix.as_str(), at.region.as_str());
        assert_eq!(found, (endpoint, bucket, prefix, region), "{text}");
        assert_eq!(at.session_token, None);
    }
    let Location::Azure(at) = parse("azure:cont-1:/a/b").unwrap() else { panic!() };
    assert_eq!((at.container.as_str(), at.prefix.as_str()), ("cont-1", "a/b"));
    assert_eq!(at.endpoint.as_str(), "https://account1.blob.core.windows.net/");
    assert_eq!(parse("azure:cont-1:/a/b").unwrap().to_string(), "azure:cont-1:/a/b");
    assert_eq!(parse("s3:h/bucket/p").unwrap().to_string(), "s3:https://h/bucket/p");
}

#[test]
fn what_is_wrong_is_named_with_the_remedy() {
    let table = [
        ("", "repository: it is empty"),
        ("local:", "names no directory"),
        ("sftp:host:/x", "sftp: is no kind of place"),
        ("s3:", "its host is not one"),
        ("s3:https://", "its host is not one"),
        ("s3:ftp://h/bucket", "over https"),
        ("s3:https://h", "\"\" is not the name of a bucket"),
        ("s3:h/bu cket", "\"bu cket\" is not the name of a bucket"),
        ("s3:https://h/bucket/a//b", "prefix \"a//b\""),
        ("s3:https://h/bucket/../b", "prefix \"../b\""),
        ("s3:https://h/bucket/%zz", "percent-encoded"),
        ("s3:https://h/bucket?x=1", "query"),
        ("azure:container", "colon"),
        ("azure:UPPER:/", "not the name of a container"),
        ("azure:con:/a/./b", "prefix"),
    ];
    for (text, problem) in table {
        let error = parse(text).unwrap_err();
        assert!(error.to_string().contains(problem), "{text}: {error}");
        assert_eq!(error.field, "repository");
        assert!(!error.hint.is_empty());
    }
}

#[test]
fn missing_credentials_are_named() {
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_ACCOUNT_NAME", "AZURE_ACCOUNT_KEY"] {
        let address = if name.starts_with("AWS") { "s3:h/bucket" } else { "azure:container:/" };
        let error = Location::parse(address, |n| if n == name { None } else { environment(n) }).unwrap_err();
        assert_eq!(error.field, name);
    }
    let bad = Location::parse("azure:container:/", |n| match n {
        "AZURE_STORAGE_ENDPOINT" => Some("ftp://h".into()),
        _ => environment(n),
    });
    assert_eq!(bad.unwrap_err().field, "AZURE_STORAGE_ENDPOINT");
}

#[test]
fn no_secret_is_ever_shown() {
    for text in ["s3:https://h/bucket/p", "azure:container:/p"] {
        let at = parse(text).unwrap();
        let shown = format!("{at:?} {at}");
        assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVyMg"), "{shown}");
    }
    let error = parse("s3:https://me:hunter2@h/bucket").unwrap_err();
    assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    assert!(error.to_string().contains("credentials do not belong"), "{error}");
}
