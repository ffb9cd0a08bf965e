//! What the command line of `powernode-satellite` is made of.

use powernode_satellite::cli::audit;
use powernode_satellite::cli::command_line::{Argument, Definition};

const JSON: Argument = Argument::flag("json", "Print JSON");
const REASON: Argument = Argument::value("reason", "TEXT", "Why; the parent and the audit log are told");
const YES: Argument = Argument::flag("yes", "Do not ask");

/// The program.
pub static PROGRAM: Definition = Definition {
    name: "powernode-satellite",
    about: "Joins this box to a Powernode parent and keeps it connected, from behind any NAT",
    closing: "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not joined, 4 refused by the parent, 5 \
              parent unreachable.\nEvery configuration key can also be set in the environment: see \
              `powernode-satellite config show`.",
    arguments: &[
        Argument::value(
            "config",
            "FILE",
            "Configuration file [default: /etc/powernode-satellite/satellite.toml, if it exists]",
        ),
        Argument::value("state-dir", "DIR", "Directory of the satellite's state"),
        Argument::value("state-key-file", "FILE", "File with the key that seals the state"),
        Argument::value("admin-socket", "PATH", "Socket of the running satellite"),
    ],
    commands: &[
        Definition {
            name: "run",
            about: "Run the satellite: join if invited, stay connected, send heartbeats",
            ..Definition::BARE
        },
        Definition {
            name: "join",
            about: "Join a parent",
            details: "A join code says all there is to know of the parent; a bare token takes --parent-url and, unless \
                      the system knows its CA, --ca-file or --ca-sha256. A running satellite takes the join over; \
                      else `run` keeps the connection afterwards. Ctrl-C ends the waiting and not the join: the \
                      invitation is stored.",
            arguments: JOIN,
            ..Definition::BARE
        },
        Definition {
            name: "rejoin",
            about: "Join the same parent anew with a new token: key, grants, services and logs stay",
            details: "For when the parent's answer was lost, the certificate has expired, or the parent does not know \
                      this peer any more. If the parent refuses, what was there goes on; as long as it does not \
                      answer, --cancel goes back to that. A bare token says nothing of the parent: its URL and CA \
                      are then those of the configuration, or of --parent-url and --ca-file or --ca-sha256.",
            arguments: &REJOIN,
            ..Definition::BARE
        },
        Definition {
            name: "status",
            about: "Show membership, tunnel, heartbeats and certificate",
            arguments: &[JSON],
            ..Definition::BARE
        },
        Definition {
            name: "services",
            about: "Services of this box that the parent may reach, under grants",
            commands: SERVICES,
            ..Definition::BARE
        },
        Definition {
            name: "audit",
            about: "The log of what the parent and its people did here",
            commands: audit::COMMANDS,
            ..Definition::BARE
        },
        Definition {
            name: "grants",
            about: "Grants: by what the parent's people and programs may act on this box",
            commands: GRANTS,
            ..Definition::BARE
        },
        Definition {
            name: "authority",
            about: "The certificate authority of a box that certifies itself, as among equals",
            details: "A box that its parent certifies has none.",
            commands: AUTHORITY,
            ..Definition::BARE
        },
        Definition {
            name: "emancipate",
            about: "Take the parent's operator rights on this box back; the peering and the heartbeat go on",
            details: "Asks before it does so; without a terminal it needs --yes.",
            arguments: &[REASON, YES, JSON],
            ..Definition::BARE
        },
        Definition {
            name: "leave",
            about: "Leave the parent: tell it, destroy the keys of the peering, keep the logs",
            details: "Asks before it does so; without a terminal it needs --yes.",
            arguments: &[REASON, YES, JSON],
            ..Definition::BARE
        },
        Definition {
            name: "config",
            about: "Look at the configuration",
            commands: &[
                Definition {
                    name: "check",
                    about: "Say whether it is good, and if not, where not",
                    ..Definition::BARE
                },
                Definition {
                    name: "show",
                    about: "Show every key, its value and where that comes from",
                    ..Definition::BARE
                },
            ],
            ..Definition::BARE
        },
        Definition {
            name: "doctor",
            about: "Find out by trying whether a satellite would work here, and what to do where not",
            details: "Works before the join and beside the running satellite. Ends with 0 when it would work, with 1 \
                      when not.",
            arguments: &[JSON],
            ..Definition::BARE
        },
        Definition {
            name: "self-check",
            about: "Say whether this program can run with the configuration and state that it finds, changing nothing",
            details: "For before an update: run the new program's self-check while the old one still runs. Ends with \
                      0 when it can run, with 1 when it cannot.",
            arguments: &[JSON],
            ..Definition::BARE
        },
        Definition {
            name: "state-key",
            about: "The key that seals the state",
            commands: &[Definition {
                name: "unseal",
                about: "Take the seals off the state, while nothing runs: before the key is changed or given up",
                ..Definition::BARE
            }],
            ..Definition::BARE
        },
        Definition {
            name: "version",
            about: "Print the version",
            ..Definition::BARE
        },
    ],
    ..Definition::BARE
};

const SERVICES: &[Definition] = &[
    Definition {
        name: "list",
        about: "Show what is published",
        arguments: &[JSON],
        ..Definition::BARE
    },
    Definition {
        name: "publish",
        about: "Publish a service, or change one that was published like this; it stays over restarts",
        arguments: &[
            Argument::word(
                "name",
                "NAME",
                "By which it is asked for: letters, digits and hyphens",
            )
            .required(),
            Argument::word(
                "address",
                "ADDRESS",
                "Where its program listens: an IP address and a port, localhost:PORT, or the path of a Unix socket",
            )
            .required(),
            Argument::value(
                "protocol",
                "PROTOCOL",
                "What is spoken with it: tcp, http, udp or unix [default: tcp, or unix for a path]",
            ),
            Argument::value("description", "TEXT", "For the people at the parent's").or(""),
            Argument::value(
                "health-check",
                "CHECK",
                "How it is looked after: none, connect, or a path that is asked for by HTTP",
            )
            .or("none"),
            Argument::value("health-interval", "DURATION", "Time between two checks").or("30s"),
            // The contract's CONNECTIONS_DEFAULT.
            Argument::value("max-connections", "NUMBER", "Connections to it at the same time").or("256"),
            Argument::value(
                "bandwidth",
                "RATE",
                "Bytes each second of all its connections, in each direction, such as 2MiB",
            )
            .or("none"),
            Argument::flag(
                "proxy-protocol",
                "Tell its program the asking person's address by a PROXY protocol header, version 2",
            ),
        ],
        ..Definition::BARE
    },
    Definition {
        name: "withdraw",
        about: "Take a service back that was published like this; its connections end",
        arguments: &[Argument::word("name", "NAME", "Its name").required()],
        ..Definition::BARE
    },
];

const AUTHORITY: &[Definition] = &[
    Definition {
        name: "rotate",
        about: "Go over to a new authority, which the present one vouches for",
        details: "The parent is served both. When it has fetched the new one, or after a day, this box's certificate \
                  is issued anew under it; the old one stays served for a month. No heartbeat is lost. It happens by \
                  itself when three quarters of the authority's ten years are over.",
        arguments: &[JSON],
        ..Definition::BARE
    },
    Definition {
        name: "retire",
        about: "Serve the authority of before no more, ahead of its time",
        arguments: &[
            Argument::flag("force", "Also when the parent has not fetched the new one"),
            JSON,
        ],
        ..Definition::BARE
    },
];

const GRANT_ID: Argument = Argument::word("id", "ID", "Its id").required();

const GRANTS: &[Definition] = &[
    Definition {
        name: "list",
        about: "Show the grants",
        arguments: &[Argument::flag("all", "Archived ones, too"), JSON],
        ..Definition::BARE
    },
    Definition {
        name: "issue",
        about: "Let somebody of the parent's act on this box",
        arguments: &[
            Argument::value(
                "subject",
                "NAME",
                "Who: the name of the parent's operator, or of a program",
            )
            .required_unless("operator"),
            Argument::value(
                "service",
                "NAME",
                "The one service that it opens [default: all services]",
            )
            .not_with(&["operator"]),
            Argument::flag(
                "operator",
                "Give the parent its operator grant: everything, for all of its operators, for a year",
            ),
            Argument::value("kind", "KIND", "Another kind of resource than a service")
                .not_with(&["operator"]),
            Argument::list(
                "scopes",
                "SCOPES",
                "What may be done: read, write, admin, migrate [default: read,write]",
            ),
            Argument::list(
                "source",
                "CIDR",
                "Only from these addresses or networks, such as 203.0.113.0/24 [default: any]",
            ),
            Argument::list(
                "instance",
                "UUID",
                "Only from these instances of the platform [default: any]",
            ),
            Argument::list(
                "network",
                "UUID",
                "Only through these networks of the platform [default: any]",
            ),
            Argument::value("ttl", "DURATION", "How long, at least 7d [default: 30d]"),
            Argument::flag("no-deliver", "Do not hand it to the parent through the tunnel"),
            JSON,
        ],
        ..Definition::BARE
    },
    Definition {
        name: "show",
        about: "Show one grant",
        arguments: &[GRANT_ID, JSON],
        ..Definition::BARE
    },
    Definition {
        name: "revoke",
        about: "End a grant at once; connections under it are cut",
        arguments: &[GRANT_ID, REASON.required(), JSON],
        ..Definition::BARE
    },
];

/// What a join takes, and these.
const REJOIN: [Argument; JOIN.len() + 3] = {
    let rebind = Argument::flag(
        "rebind-grants",
        "Let grants go on for the peer that this box is then, if the parent gives it another id",
    );
    let mut all = [rebind; JOIN.len() + 3];
    let mut index = 0;
    while index < JOIN.len() {
        all[index] = JOIN[index];
        index += 1;
    }
    all[index + 1] = Argument::flag("force", "Also when the membership works");
    all[index + 2] = Argument::flag(
        "cancel",
        "Give a rejoin up that the parent has not answered: the membership of before goes on",
    )
    .not_with(&[
        "code",
        "code-file",
        "parent-url",
        "token-file",
        "token-stdin",
        "token",
    ]);
    all
};

const JOIN: &[Argument] = &[
    Argument::word(
        "code",
        "CODE",
        "Join code from `powernode-host-bridge invite`; `-` reads it from standard input (safer: other users can \
         read command lines)",
    )
    .not_with(&["code-file", "parent-url", "token-file", "token-stdin", "token"]),
    Argument::value("code-file", "FILE", "File with the join code").not_with(&[
        "parent-url",
        "token-file",
        "token-stdin",
        "token",
    ]),
    Argument::value("parent-url", "URL", "The parent's URL, when there is no join code"),
    Argument::repeated(
        "bridge",
        "ADDRESS",
        "Address of a host-bridge, `host:port`; repeat for several [default: host and port of the URL]",
    ),
    Argument::value("token-file", "FILE", "File with the acceptance token").not_with(&["token-stdin", "token"]),
    Argument::flag("token-stdin", "Read the acceptance token from standard input").not_with(&["token"]),
    Argument::value(
        "token",
        "TOKEN",
        "The acceptance token itself (other users can read command lines: better use one of the above)",
    ),
    Argument::value("ca-file", "FILE", "PEM file with the parent's CA").not_with(&["ca-sha256"]),
    Argument::value("ca-sha256", "HEX", "SHA-256 fingerprint of the parent's CA"),
    Argument::value(
        "contact",
        "TEXT",
        "Who answers for this box, for example ops@example.com",
    ),
    Argument::value("location", "TEXT", "Where this box stands"),
    Argument::value(
        "data-residency",
        "TEXT",
        "Under which jurisdiction its data is kept",
    ),
    Argument::value("timeout", "DURATION", "How long to wait for the outcome").or("60s"),
];
