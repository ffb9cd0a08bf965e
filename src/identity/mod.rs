//! Floor 4: keys, certificates and the TLS configurations made of them. Knows no peer registry, no
//! tunnel and no file layout.
