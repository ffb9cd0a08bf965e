//! The contract's vectors of grants, row by row, for streams to services over the real wire.

use std::net::SocketAddr;
use std::time::Duration;

use powernode_satellite::base::time::UnixTime;
use powernode_satellite::grant::{GrantRequest, MANAGED_CHILD_OPERATOR_KIND, NewGrant};
use powernode_satellite::satellite::grants::{Handover, Issue};
use powernode_satellite::tunnel::stream::refusal_in;
use powernode_satellite::wire::RefusalCode;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::program::Program;
use crate::shop::{ANNA, NOW, Shop, Ticket, in_time, peer, service};

const DAY: Duration = Duration::from_secs(86_400);

/// The shortest life of a grant, and the longest.
const SHORT: Duration = DAY.saturating_mul(7);
const LONG: Duration = DAY.saturating_mul(365);

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    grant: Granted,
    call: Call,
    status: u16,
}

#[derive(Deserialize)]
struct Granted {
    peer: String,
    resource_kind: String,
    resource_id: Option<String>,
    permission_scopes: Vec<String>,
    node_instance_ids: Vec<String>,
    sdwan_network_ids: Vec<String>,
    source_cidrs: Vec<String>,
    state: String,
}

#[derive(Deserialize)]
struct Call {
    resource_id: Option<String>,
    instance: Option<String>,
    network: Option<String>,
    source_ip: Option<String>,
}

impl Case {
    /// What a stream meets. It has no place for an instance or a network of the platform's, so that it names
    /// none: a grant that is for some of them alone opens nothing.
    fn expected(&self) -> u16 {
        let mut listed = self
            .grant
            .node_instance_ids
            .iter()
            .chain(&self.grant.sdwan_network_ids);
        let listed = listed.any(|id| id != "*");
        match (
            self.call.instance.is_some() || self.call.network.is_some(),
            listed,
        ) {
            (true, true) => 403,
            (true, false) => 200,
            (false, _) => self.status,
        }
    }

    async fn ticket(&self, shop: &Shop, kind: &str) -> Ticket {
        let owner = match self.grant.peer.as_str() {
            "P1" => peer(),
            "P2" => "0192f0c1-7c1e-7a53-9d0e-00000000beef".parse().unwrap(),
            other => panic!("peer {other}"),
        };
        let scopes: Vec<&str> = self.grant.permission_scopes.iter().map(String::as_str).collect();
        let life = if self.grant.state == "expired" {
            SHORT
        } else {
            LONG
        };
        let request = GrantRequest {
            resource_id: self.grant.resource_id.clone(),
            node_instance_ids: self.grant.node_instance_ids.clone(),
            sdwan_network_ids: self.grant.sdwan_network_ids.clone(),
            source_cidrs: self.grant.source_cidrs.clone(),
            ttl_seconds: Some(i64::try_from(life.as_secs()).unwrap()),
            ..GrantRequest::new(owner, ANNA, kind, &scopes)
        };
        let new = NewGrant::check(request).unwrap();
        let issued = shop.book.issue(Issue::of(new, Handover::ByHand)).await.unwrap();
        Ticket {
            grant: issued.grant.id,
            token: issued.token.to_secret(),
        }
    }
}

fn later(days: u32) -> UnixTime {
    NOW.plus(DAY.saturating_mul(days))
}

#[tokio::test]
async fn every_row_of_the_contracts_vectors_holds_for_streams() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/contract/grant_authorization.json"
    );
    let vectors: Vectors = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(vectors.cases.len() > 20);
    let (ssh, web) = (Program::echo().await, Program::echo().await);
    // As they stand, and for the kind of grant that is made for services.
    for kind in [MANAGED_CHILD_OPERATOR_KIND, "service"] {
        let shop = Shop::open(vec![
            service("ssh", "tcp", &ssh.address),
            service("web", "http", &web.address),
        ])
        .await;
        let mut tickets = Vec::new();
        for case in &vectors.cases {
            let kind = match case.grant.resource_kind.as_str() {
                MANAGED_CHILD_OPERATOR_KIND => kind,
                other => other,
            };
            tickets.push(case.ticket(&shop, kind).await);
        }
        let revoke = async |state: &str| {
            for (case, ticket) in vectors.cases.iter().zip(&tickets) {
                if case.grant.state == state {
                    shop.book.revoke(ticket.grant, "over").await.unwrap();
                }
            }
        };
        revoke("archived").await;
        shop.wall.set(later(91));
        assert_eq!(shop.book.archive().await.unwrap(), 1);
        revoke("revoked").await;
        for (case, ticket) in vectors.cases.iter().zip(&tickets) {
            let source = case.call.source_ip.as_deref();
            let source = source.map(|ip| SocketAddr::new(ip.parse().unwrap(), 50_000).to_string());
            let name = case.call.resource_id.as_deref().unwrap_or("web");
            let mut stream = shop.ask_as(name, Some(ticket), ANNA, source.as_deref()).await;
            // A refusal may come first.
            let _ = stream.write_all(b"in").await;
            let _ = stream.shutdown().await;
            let mut back = Vec::new();
            let status = match in_time(stream.read_to_end(&mut back)).await {
                Ok(_) => 200,
                Err(error) => match refusal_in(&error).map(|refusal| refusal.code) {
                    Some(RefusalCode::Unauthorized) => 401,
                    Some(RefusalCode::Forbidden) => 403,
                    other => panic!("{kind}, {}: {other:?} {error}", case.name),
                },
            };
            assert_eq!(status, case.expected(), "{kind}, {}", case.name);
            assert_eq!(back, if status == 200 { b"in".as_slice() } else { b"" });
        }
    }
}
