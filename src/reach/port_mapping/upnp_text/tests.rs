use proptest::prelude::*;

use super::*;
use crate::machine::mapping_lease::MappingProtocol;

fn gateway() -> IpAddr {
    "192.168.1.1".parse().unwrap()
}

fn place(address: &str, path: &str) -> Place {
    Place {
        address: address.parse().unwrap(),
        path: path.to_owned(),
    }
}

#[test]
fn a_search_is_this_text() {
    assert_eq!(
        search("239.255.255.250:1900".parse().unwrap(), SEARCH_TARGETS[0]),
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    );
}

#[test]
fn an_answer_leads_to_the_gateway_or_nowhere() {
    let answer = |location: &str| format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation: {location}\r\n\r\n");
    let read = |location: &str| read_search_answer(&answer(location), gateway());
    assert_eq!(
        read("http://192.168.1.1:5000/rootDesc.xml"),
        Ok(place("192.168.1.1:5000", "/rootDesc.xml"))
    );
    assert_eq!(read("http://192.168.1.1"), Ok(place("192.168.1.1:80", "/")));
    assert_eq!(
        read("HTTP://192.168.1.1:80?x=1"),
        Ok(place("192.168.1.1:80", "/?x=1"))
    );
    for elsewhere in [
        "http://192.168.1.66:5000/rootDesc.xml",
        "http://router.lan:5000/rootDesc.xml",
        "http://192.168.1.1@10.0.0.1/x",
        "http://192.168.1.1.evil.example/x",
        "http://[::1]:80/x",
        "http://127.0.0.1:80/x",
        "http://0300.0250.1.1/x",
    ] {
        assert_eq!(read(elsewhere), Err(Unusable::Elsewhere), "{elsewhere}");
    }
    for malformed in [
        "https://192.168.1.1/",
        "ftp://192.168.1.1/",
        "/x",
        "",
        "http://192.168.1.1/a b",
    ] {
        assert_eq!(read(malformed), Err(Unusable::Malformed), "{malformed}");
    }
    let notify = "NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n";
    assert_eq!(read_search_answer(notify, gateway()), Err(Unusable::Malformed));
    let not_found = "HTTP/1.1 404 Not Found\r\nLOCATION: http://192.168.1.1/\r\n\r\n";
    assert_eq!(read_search_answer(not_found, gateway()), Err(Unusable::Malformed));
}

fn description(services: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><!-- <service>no</service> --><root xmlns=\"urn:schemas-upnp-org:device-1-0\">\
         <device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><serviceList>\
         <service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>\
         <controlURL>/l3</controlURL></service></serviceList><deviceList><device><serviceList>{services}\
         </serviceList></device></deviceList></device></root>\0"
    )
}

fn service(kind: &str, control: &str) -> String {
    format!(
        "<service>\n<serviceType>urn:schemas-upnp-org:service:{kind}</serviceType>\n<serviceId>x</serviceId>\
         <controlURL>{control}</controlURL><eventSubURL/></service>"
    )
}

#[test]
fn services_are_found_and_ranked() {
    let from = place("192.168.1.1:5000", "/igd/rootDesc.xml");
    let xml = description(
        &[
            service("WANCommonInterfaceConfig:1", "/common"),
            service("WANPPPConnection:1", "ctl/ppp"),
            service("WANIPConnection:1", "http://192.168.1.1:5001/ip?a=1&amp;b=2"),
        ]
        .concat(),
    );
    let services = read_description(&xml, &from).unwrap();
    let found: Vec<_> = services
        .iter()
        .map(|service| {
            (
                service.kind,
                service.control.address.port(),
                service.control.path.as_str(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (
                "urn:schemas-upnp-org:service:WANIPConnection:1",
                5_001,
                "/ip?a=1&b=2"
            ),
            (
                "urn:schemas-upnp-org:service:WANPPPConnection:1",
                5_000,
                "/igd/ctl/ppp"
            ),
        ]
    );
}

#[test]
fn a_description_that_leads_elsewhere_is_refused() {
    let from = place("192.168.1.1:5000", "/rootDesc.xml");
    for control in [
        "http://192.168.1.66:5000/ctl",
        "//192.168.1.66/ctl",
        "http://evil.example/ctl",
    ] {
        let xml = description(&service("WANIPConnection:1", control));
        assert_eq!(
            read_description(&xml, &from),
            Err(Unusable::Elsewhere),
            "{control}"
        );
    }
    let based = format!(
        "<root><URLBase>http://192.168.1.66:80/</URLBase>{}</root>",
        service("WANIPConnection:1", "/ctl")
    );
    assert_eq!(read_description(&based, &from), Err(Unusable::Elsewhere));
    assert_eq!(
        read_description(&description(""), &from),
        Err(Unusable::Malformed)
    );
    let own = "<root><URLBase>http://192.168.1.1:81/base/</URLBase>".to_owned()
        + &service("WANIPConnection:1", "ctl");
    let services = read_description(&own, &from).unwrap();
    assert_eq!(services[0].control, place("192.168.1.1:81", "/base/ctl"));
}

#[test]
fn calls_are_these_texts() {
    let record = MappingRecord {
        gateway: gateway(),
        interface: 0,
        protocol: MappingProtocol::Upnp,
        internal: "192.168.1.20:41234".parse().unwrap(),
        external_port: 41_235,
        lease_seconds: 3_600,
        nonce: [0; 12],
        description: "powernode <&> \"x\"".to_owned(),
    };
    let kind = SERVICES[1];
    let body = Call::add(Carries::Udp, &record).body(kind);
    assert!(body.contains(
        "<u:AddPortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\"><NewRemoteHost></NewRemoteHost>\
         <NewExternalPort>41235</NewExternalPort><NewProtocol>UDP</NewProtocol><NewInternalPort>41234</NewInternalPort>\
         <NewInternalClient>192.168.1.20</NewInternalClient><NewEnabled>1</NewEnabled>\
         <NewPortMappingDescription>powernode &lt;&amp;&gt; &quot;x&quot;</NewPortMappingDescription>\
         <NewLeaseDuration>3600</NewLeaseDuration></u:AddPortMapping>"
    ));
    let body = Call::delete(Carries::Tcp, 41_235).body(kind);
    assert!(body.contains(
        "<NewExternalPort>41235</NewExternalPort><NewProtocol>TCP</NewProtocol></u:DeletePortMapping>"
    ));
}

#[test]
fn entries_faults_and_addresses_are_read() {
    let entry = "<s:Envelope><s:Body><u:GetSpecificPortMappingEntryResponse xmlns:u=\"x\">\
        <NewInternalPort>41234</NewInternalPort><NewInternalClient>192.168.1.20</NewInternalClient>\
        <NewEnabled>1</NewEnabled><NewPortMappingDescription>a &amp; b</NewPortMappingDescription>\
        <NewLeaseDuration>77</NewLeaseDuration></u:GetSpecificPortMappingEntryResponse></s:Body></s:Envelope>";
    assert_eq!(
        read_entry(entry),
        Some(Entry {
            internal: "192.168.1.20:41234".parse().unwrap(),
            description: "a & b".to_owned(),
            enabled: true,
            lease_seconds: 77,
        })
    );
    assert_eq!(read_entry("<x/>"), None);
    assert!(
        !read_entry(&entry.replace("<NewEnabled>1", "<NewEnabled>0"))
            .unwrap()
            .enabled
    );
    let fault =
        "<s:Fault><detail><UPnPError xmlns=\"u\"><errorCode>725</errorCode></UPnPError></detail></s:Fault>";
    assert_eq!(read_fault(fault), Some(725));
    for (code, expected) in [
        (402, Denial::InvalidArguments),
        (501, Denial::NotAllowed),
        (606, Denial::NotAllowed),
        (718, Denial::PortTaken),
        (724, Denial::SamePortOnly),
        (725, Denial::OnlyPermanent),
        (999, Denial::Temporary),
    ] {
        assert_eq!(denial(code), expected);
    }
    let address =
        |text: &str| read_external_address(&format!("<NewExternalIPAddress>{text}</NewExternalIPAddress>"));
    assert_eq!(address(" 93.184.216.34 "), Some("93.184.216.34".parse().unwrap()));
    let none = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    assert_eq!((address("0.0.0.0"), address("")), (none, none));
    assert_eq!(read_external_address("<x/>"), None);
}

proptest! {
    #[test]
    fn whatever_a_router_writes_is_read_without_a_panic(
        text in "([<>/&:!-]|service|serviceType|controlURL|URLBase|http://|192.168.1.1|é|[ -~]){0,200}",
    ) {
        let from = place("192.168.1.1:5000", "/x");
        for service in read_description(&text, &from).unwrap_or_default() {
            prop_assert_eq!(service.control.address.ip(), gateway());
        }
        if let Ok(place) = read_search_answer(&format!("HTTP/1.1 200 OK\r\nlocation:{text}"), gateway()) {
            prop_assert_eq!(place.address.ip(), gateway());
        }
        read_entry(&text);
        read_fault(&text);
        read_external_address(&text);
    }

    #[test]
    fn what_is_escaped_comes_back(text in "\\PC{0,40}") {
        let escaped = escaped(&text);
        prop_assert_eq!(unescaped(&escaped), text.as_str());
        prop_assert!(!escaped.contains('<'));
    }
}
