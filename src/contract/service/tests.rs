//! What may be published, and how it is told.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn service(protocol: &str, address: &str) -> ServiceFields {
    let protocol = protocol.parse().unwrap();
    ServiceFields::new("web".parse().unwrap(), protocol, address.parse().unwrap())
}

fn refused(fields: ServiceFields) -> String {
    ServiceDefinition::try_from(fields).unwrap_err().to_string()
}

#[test]
fn every_field_is_among_the_names() {
    let written = serde_json::to_value(service("tcp", "127.0.0.1:80")).unwrap();
    let mut names = ServiceFields::NAMES;
    names.sort_unstable();
    assert!(written.as_object().unwrap().keys().eq(names));
}

#[test]
fn names_are_labels_of_host_names() {
    for good in ["a", "0", "web-2", &"x".repeat(63)] {
        assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
    }
    assert_eq!("Web".parse::<ServiceName>().unwrap().as_str(), "web");
    let long = "x".repeat(64);
    for bad in [
        "",
        "-a",
        "a-",
        "a.b",
        "a b",
        " a",
        "a\n",
        "a\0",
        "ä",
        "ａ",
        "*",
        "../a",
        "127.0.0.1:22",
        &long,
    ] {
        assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
    }
}

#[test]
fn addresses_are_never_names_to_be_resolved() {
    for (text, shown) in [
        ("127.0.0.1:22", "127.0.0.1:22"),
        ("[::1]:22", "[::1]:22"),
        ("[::ffff:192.0.2.7]:22", "192.0.2.7:22"),
        ("localhost:80", "localhost:80"),
        ("/run/docker.sock", "/run/docker.sock"),
    ] {
        assert_eq!(text.parse::<LocalAddress>().unwrap().to_string(), shown);
    }
    let long = format!("/{}", "x".repeat(SOCKET_PATH_MAX_BYTES));
    for bad in [
        "",
        "example.com:80",
        "localhost",
        "localhost:0",
        "localhost:65536",
        "LOCALHOST:80",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.1:22",
        "0.0.0.0:22",
        "[::]:22",
        "[::ffff:0.0.0.0]:22",
        "224.0.0.1:22",
        "[ff02::1]:22",
        "255.255.255.255:9",
        "run/docker.sock",
        "/run/../etc/passwd",
        "/run/a\0b",
        &long,
    ] {
        assert!(bad.parse::<LocalAddress>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_protocol_needs_its_kind_of_address() {
    for (protocol, address) in [
        ("tcp", "127.0.0.1:22"),
        ("http", "localhost:80"),
        ("http", "/run/web.sock"),
        ("unix", "/run/docker.sock"),
        ("udp", "192.0.2.1:53"),
    ] {
        ServiceDefinition::try_from(service(protocol, address)).unwrap();
    }
    for (protocol, address) in [("unix", "127.0.0.1:22"), ("tcp", "/run/a"), ("udp", "/run/a")] {
        let why = refused(service(protocol, address));
        assert!(why.contains(protocol) && why.contains(address), "{why}");
    }
}

#[test]
fn what_packets_do_not_have_is_refused() {
    let checked = ServiceFields {
        health_check: HealthCheck::Connect,
        ..service("udp", "127.0.0.1:53")
    };
    assert!(refused(checked).contains("health_check"));
    let announced = ServiceFields {
        proxy_protocol: true,
        ..service("udp", "127.0.0.1:53")
    };
    assert!(refused(announced).contains("proxy_protocol"));
}

#[test]
fn numbers_and_texts_have_bounds() {
    let good = || service("tcp", "127.0.0.1:22");
    for (fields, key) in [
        (
            ServiceFields {
                max_connections: 0,
                ..good()
            },
            "max_connections",
        ),
        (
            ServiceFields {
                max_connections: CONNECTIONS_CEILING + 1,
                ..good()
            },
            "max_connections",
        ),
        (
            ServiceFields {
                health_interval_seconds: 4,
                ..good()
            },
            "health_interval",
        ),
        (
            ServiceFields {
                bandwidth: 1,
                ..good()
            },
            "bandwidth",
        ),
        (
            ServiceFields {
                description: "x".repeat(DESCRIPTION_MAX_CHARS + 1),
                ..good()
            },
            "description",
        ),
        (
            ServiceFields {
                description: "two\nlines".to_owned(),
                ..good()
            },
            "description",
        ),
    ] {
        let why = refused(fields);
        assert!(why.contains(key) && why.contains("`web`"), "{why}");
    }
}

#[test]
fn health_checks_are_none_a_connection_or_a_path() {
    for (text, check) in [
        ("none", HealthCheck::None),
        ("connect", HealthCheck::Connect),
        ("/healthz?deep=1", HealthCheck::Http("/healthz?deep=1".into())),
    ] {
        assert_eq!(text.parse::<HealthCheck>().unwrap(), check);
        assert_eq!(check.to_string(), text);
    }
    for bad in ["", "tcp", "healthz", "/a b", "/a\r\nHost: x", "/a#b", "/ä"] {
        assert!(bad.parse::<HealthCheck>().is_err(), "{bad:?}");
    }
}

#[test]
fn the_json_of_a_service_is_its_texts() {
    let fields = ServiceFields {
        health_check: HealthCheck::Connect,
        ..service("unix", "/run/docker.sock")
    };
    let definition = ServiceDefinition::try_from(fields).unwrap();
    let written = serde_json::to_value(&definition).unwrap();
    assert_eq!(
        written,
        json!({
            "name": "web", "protocol": "unix", "address": "/run/docker.sock", "description": "",
            "health_check": "connect", "health_interval_seconds": 30, "max_connections": 256, "bandwidth": 0,
            "proxy_protocol": false
        })
    );
    let read: ServiceDefinition = serde_json::from_value(written).unwrap();
    assert_eq!(read, definition);
    let short = json!({ "name": "a", "protocol": "tcp", "address": "localhost:1" });
    serde_json::from_value::<ServiceDefinition>(short).unwrap();
    for bad in [
        json!({ "name": "a", "protocol": "unix", "address": "localhost:1" }),
        json!({ "name": "a.b", "protocol": "tcp", "address": "localhost:1" }),
        json!({ "name": "a", "protocol": "tcp", "address": "localhost:1", "host": "x" }),
    ] {
        assert!(
            serde_json::from_value::<ServiceDefinition>(bad.clone()).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn the_catalog_and_the_capabilities_keep_the_local_address_to_themselves() {
    let fields = ServiceFields {
        description: "the shop's console".to_owned(),
        ..service("http", "192.168.7.9:8080")
    };
    let offering = Offering::of(&fields.try_into().unwrap(), ServiceHealth::Healthy);
    assert_eq!(
        serde_json::to_value(&offering).unwrap(),
        json!({
            "slug": "web", "protocol": "http", "description": "the shop's console", "health": "healthy",
            "max_connections": 256
        })
    );
    assert_eq!(
        serde_json::to_value(offering.capability()).unwrap(),
        json!({ "name": "web", "protocol": "http", "health": "healthy" })
    );
}

#[test]
fn all_services_fit_into_one_heartbeat() {
    /// What a host-bridge keeps of `capabilities`, less the disclosure with room to spare.
    const ROOM: usize = 12 * 1024;
    let name = "x".repeat(SERVICE_NAME_MAX_BYTES).parse().unwrap();
    let fields = ServiceFields::new(name, ServiceProtocol::Http, LocalAddress::Localhost(1));
    let offering = Offering::of(&fields.try_into().unwrap(), ServiceHealth::Unhealthy);
    let one = serde_json::to_string(&offering.capability()).unwrap().len() + 1;
    assert!(one * SERVICES_MAX < ROOM, "{one}");
}

proptest! {
    #[test]
    fn whatever_is_read_is_shown_the_same(text in "\\PC{0,80}") {
        if let Ok(name) = text.parse::<ServiceName>() {
            prop_assert_eq!(name.to_string().parse::<ServiceName>().unwrap(), name);
        }
        if let Ok(address) = text.parse::<LocalAddress>() {
            prop_assert_eq!(address.to_string().parse::<LocalAddress>().unwrap(), address);
        }
        if let Ok(check) = text.parse::<HealthCheck>() {
            prop_assert_eq!(check.to_string().parse::<HealthCheck>().unwrap(), check);
        }
    }
}
