//! Floor 4: the embedded store. One redb file, typed tables of versioned records, migrations, and
//! the checksummed second copy for what must outlive a broken file. Knows no record of the floors above.
