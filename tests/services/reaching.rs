//! What can be reached, and by whom: published services under grants, and nothing else whatever is asked.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use powernode_satellite::contract::service::ServiceHealth;
use powernode_satellite::satellite::services::PublishedServices;
use powernode_satellite::wire::RefusalCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::program::{Program, nobody};
use crate::shop::{ANNA, Shop, in_time, refusal, service, with};

#[tokio::test]
async fn only_names_that_are_published_lead_anywhere() {
    let (published, beside) = (Program::echo().await, Program::echo().await);
    let shop = Shop::open(vec![
        service("web", "http", &published.address),
        service("ssh", "tcp", &published.address),
    ])
    .await;
    let all = shop.ticket(None).await;
    let port = beside.address.rsplit(':').next().unwrap().to_owned();
    let long = "w".repeat(63);
    for asked in [
        beside.address.as_str(),
        published.address.as_str(),
        &format!("localhost:{port}"),
        &format!("[::ffff:127.0.0.1]:{port}"),
        &format!("[::1]:{port}"),
        "127.0.0.1",
        "localhost",
        "web.",
        "web ",
        " web",
        "web\0",
        "web\nssh",
        "web,ssh",
        "web/../ssh",
        "/etc/passwd",
        "../web",
        "*",
        "%77eb",
        "wéb",
        "\u{ff57}eb",
        "\u{202e}bew",
        "web\u{200b}",
        &long,
    ] {
        let refused = shop.refusal(asked, Some(&all)).await;
        assert_eq!(
            refused.code,
            RefusalCode::UnknownService,
            "{asked:?}: {refused:?}"
        );
        assert!(!refused.message.chars().any(char::is_control), "{refused:?}");
        if asked.len() < 40 {
            assert!(refused.message.contains("published are: ssh, web"), "{refused:?}");
        }
    }
    assert_eq!(shop.report("web").opened, 0);
}

#[tokio::test]
async fn a_name_is_a_host_name_in_any_letter_case() {
    let program = Program::echo().await;
    let shop = Shop::open(vec![service("web", "http", &program.address)]).await;
    let ticket = shop.ticket(Some("web")).await;
    let mut stream = shop.ask("WEB", Some(&ticket)).await;
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    in_time(stream.read_exact(&mut back)).await.unwrap();
}

#[tokio::test]
async fn without_a_grant_that_reaches_so_far_nothing_opens() {
    let program = Program::echo().await;
    let shop = Shop::open(vec![
        service("web", "http", &program.address),
        service("ssh", "tcp", &program.address),
    ])
    .await;
    let refused = shop.refusal("web", None).await;
    assert_eq!(refused.code, RefusalCode::Unauthorized, "{refused:?}");
    let web = shop.ticket(Some("web")).await;
    let refused = shop.refusal("ssh", Some(&web)).await;
    assert_eq!(refused.code, RefusalCode::Forbidden, "{refused:?}");
    assert!(refused.message.contains("resource_id"), "{refused:?}");
    let refused = refusal(shop.ask_as("web", Some(&web), "bob@example.com", None).await).await;
    assert_eq!(refused.code, RefusalCode::Forbidden, "{refused:?}");
    let near = shop
        .ticket_for(None, |request| {
            request.source_cidrs = vec!["192.0.2.0/24".to_owned()];
        })
        .await;
    for (source, reached) in [
        (Some("192.0.2.77:1"), true),
        (Some("[::ffff:192.0.2.77]:1"), true),
        (Some("198.51.100.1:1"), false),
        (None, false),
    ] {
        let mut stream = shop.ask_as("web", Some(&near), ANNA, source).await;
        if reached {
            stream.shutdown().await.unwrap();
            assert_eq!(in_time(stream.read(&mut [0])).await.unwrap(), 0, "{source:?}");
        } else {
            assert_eq!(refusal(stream).await.code, RefusalCode::Forbidden, "{source:?}");
        }
    }
    assert_eq!(shop.report("ssh").opened, 0);
    assert_eq!(shop.report("ssh").refused, 1);
}

#[tokio::test]
async fn a_withdrawn_service_is_gone_and_so_are_its_streams() {
    let program = Program::echo().await;
    let shop = Shop::open(vec![service("web", "http", &program.address)]).await;
    let ticket = shop.ticket(None).await;
    let extra = service("extra", "tcp", &program.address);
    shop.services.publish(extra.clone()).await.unwrap();
    let mut stays = shop.ask("web", Some(&ticket)).await;
    let mut goes = shop.ask("extra", Some(&ticket)).await;
    let mut back = [0; 2];
    for stream in [&mut stays, &mut goes] {
        stream.write_all(b"on").await.unwrap();
        in_time(stream.read_exact(&mut back)).await.unwrap();
    }
    shop.services.withdraw(&extra.name).await.unwrap();
    in_time(goes.read(&mut back)).await.unwrap_err();
    let refused = shop.refusal("extra", Some(&ticket)).await;
    assert_eq!(refused.code, RefusalCode::UnknownService);
    stays.write_all(b"on").await.unwrap();
    in_time(stays.read_exact(&mut back)).await.unwrap();
    assert!(shop.services.withdraw(&extra.name).await.is_err(), "twice");
    let web = "web".parse().unwrap();
    let why = shop.services.withdraw(&web).await.unwrap_err().to_string();
    assert!(why.contains("configuration"), "{why}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_apart_from_a_service_that_is_not_published() {
    let (address, _held) = nobody();
    let shop = Shop::open(vec![service("ssh", "tcp", &address.to_string())]).await;
    let socket = shop.dir.path().join("nobody.sock");
    let unix = service("docker", "unix", socket.to_str().unwrap());
    shop.services.publish(unix).await.unwrap();
    let ticket = shop.ticket(None).await;
    for (name, words) in [
        ("ssh", "refused the connection"),
        ("docker", "socket is not there"),
    ] {
        let refused = shop.refusal(name, Some(&ticket)).await;
        assert_eq!(refused.code, RefusalCode::ServiceUnavailable);
        assert!(
            refused.message.contains(name) && refused.message.contains(words),
            "{refused:?}"
        );
        assert!(!refused.message.contains(&address.to_string()), "{refused:?}");
        assert_eq!(shop.report(name).connections, 0);
    }
}

#[tokio::test]
async fn a_packet_service_takes_no_connection() {
    let shop = Shop::open(vec![service("dns", "udp", "127.0.0.1:53")]).await;
    let ticket = shop.ticket(None).await;
    let refused = shop.refusal("dns", Some(&ticket)).await;
    assert_eq!(refused.code, RefusalCode::UnsupportedKind, "{refused:?}");
}

#[tokio::test]
async fn a_unix_socket_is_served_and_known_again_after_a_restart() {
    let shop = Shop::open(Vec::new()).await;
    let path = shop.dir.path().join("echo.sock");
    let program = Program::unix_echo(&path);
    let echo = service("echo", "unix", &program.address);
    shop.services.publish(echo).await.unwrap();
    let ticket = shop.ticket(Some("echo")).await;
    let mut stream = shop.ask("echo", Some(&ticket)).await;
    stream.write_all(&vec![9; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    in_time(stream.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back, vec![9; 100_000]);
    let stored = powernode_satellite::satellite::services::PublishedServices::new(shop.database());
    assert_eq!(stored.all().unwrap(), [service("echo", "unix", &program.address)]);
}

#[tokio::test]
async fn health_is_found_out_and_offered() {
    let answers = Program::tcp(|mut stream| async move {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    })
    .await;
    let fails = Program::tcp(|mut stream| async move {
        let _ = stream.read(&mut [0; 512]).await;
        let _ = stream
            .write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
            .await;
    })
    .await;
    let (nobody, _held) = nobody();
    let check = |name: &str, address: &str, check: &str| {
        with(name, "http", address, |fields| {
            fields.health_check = check.parse().unwrap();
        })
    };
    let shop = Shop::open(vec![
        check("good", &answers.address, "/health"),
        check("ill", &fails.address, "/health"),
        check("gone", &nobody.to_string(), "connect"),
        check("open", &fails.address, "connect"),
        check("unchecked", &fails.address, "none"),
    ])
    .await;
    for (name, health, reason) in [
        ("good", ServiceHealth::Healthy, ""),
        ("ill", ServiceHealth::Unhealthy, "HTTP 503"),
        ("gone", ServiceHealth::Unhealthy, "refused"),
        ("open", ServiceHealth::Healthy, ""),
        ("unchecked", ServiceHealth::Unchecked, ""),
    ] {
        shop.wait(name, |report| report.health == health).await;
        let told = shop.report(name).health_reason.unwrap_or_default();
        assert!(told.contains(reason), "{name}: {told}");
    }
    let offered = shop.services.offerings();
    let offered = offered.borrow();
    let told: Vec<_> = offered
        .iter()
        .map(|offer| (offer.slug.as_str(), offer.health))
        .collect();
    assert_eq!(told.len(), 5);
    assert!(told.contains(&("ill", ServiceHealth::Unhealthy)), "{told:?}");
}

#[tokio::test]
async fn what_is_published_or_withdrawn_is_so_whoever_has_stopped_waiting() {
    let shop = Shop::open(Vec::new()).await;
    let stored = PublishedServices::new(shop.database());
    let count = |wanted: usize| {
        let (stored, services) = (&stored, &shop.services);
        async move {
            while stored.all().unwrap().len() != wanted || services.reports().len() != wanted {
                tokio::task::yield_now().await;
            }
        }
    };
    let web = service("web", "tcp", "127.0.0.1:8080");
    begun(shop.services.publish(web.clone())).await;
    in_time(count(1)).await;
    begun(shop.services.withdraw(&web.name)).await;
    in_time(count(0)).await;
}

/// Begins some work and waits for it no more, as where the command that asks for it is interrupted.
async fn begun(work: impl Future) {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let _ = work.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}
