//! Every change of the key area, and a power cut at every write and flush of
//! it: what is found afterwards is old or new, and goes on.

use std::collections::BTreeSet;

use super::*;
use disk::Fault;

/// What a pool's key area says, in words.
type State = String;

fn state(vault: &Vault) -> State {
    let salts: Vec<_> = vault.eras.borrow().places.iter().flatten().map(|era| era.id.0).collect();
    format!("{:?} {:?} {salts:?}", vault.ways(), vault.domains())
}

#[derive(Clone, Copy, Debug)]
enum Change {
    BeginEra,
    ForgetEras,
    AddDomain,
    Rotate,
    ForgetKey,
    Erase,
    AddWay,
    RemoveWay,
}

/// A domain that has keys in two blocks.
const SPREAD: DomainId = DomainId(1);

impl Change {
    const ALL: [Self; 8] = [
        Self::BeginEra,
        Self::ForgetEras,
        Self::AddDomain,
        Self::Rotate,
        Self::ForgetKey,
        Self::Erase,
        Self::AddWay,
        Self::RemoveWay,
    ];

    async fn make(self, vault: &Vault) -> Result<(), KeyError> {
        match self {
            Self::BeginEra => vault.begin_era().await.map(drop),
            Self::ForgetEras => vault.forget_eras(&[EraId(1), EraId(120)]).await,
            Self::AddDomain => vault.add_domain("another").await.map(drop),
            Self::Rotate => vault.rotate(DomainId(2)).await.map(drop),
            Self::ForgetKey => vault.forget_key(SPREAD, EraId(0)).await,
            Self::Erase => vault.erase(SPREAD).await,
            Self::AddWay => vault.add_way(way("second", &key_file(2))).await,
            Self::RemoveWay => vault.remove_way("other").await,
        }
    }

    /// States between old and new that are a state to be in, too.
    const fn steps_between(self) -> usize {
        match self {
            // The key is there, its era is not; two blocks of eras.
            Self::Rotate | Self::ForgetEras => 1,
            // What of an erasure is missing is done when the pool is unlocked.
            _ => 0,
        }
    }

    fn keeps(self, domain: DomainId, era: EraId) -> bool {
        match self {
            Self::ForgetKey | Self::Erase => domain != SPREAD,
            Self::ForgetEras => era != EraId(1),
            _ => true,
        }
    }
}

struct Sample(DomainId, [u8; BLOCK_SIZE], Seal);

/// A pool with several blocks of domain keys and of eras, and what it sealed.
fn pool() -> (Rc<Disk>, Vec<Sample>) {
    let disk = Rc::new(Disk::default());
    let vault = create(&disk);
    done(vault.add_way(way("other", &key_file(3))));
    for _ in 0..2 {
        done(vault.begin_era());
    }
    for number in 1..=31 {
        done(vault.add_domain(&number.to_string()));
    }
    let domains = [DomainId::METADATA, SPREAD, DomainId(2)];
    let samples = || {
        domains.map(|domain| {
            let (block, seal) = sealed(&vault, domain);
            Sample(domain, block, seal)
        })
    };
    let mut all: Vec<Sample> = samples().into();
    done(vault.rotate(SPREAD));
    all.extend(samples());
    while vault.era() < Some(EraId(121)) {
        done(vault.begin_era());
    }
    all.extend(samples());
    (disk, all)
}

/// Sectors of the write under way that may be there: beginnings, ends, single
/// ones, holes, and some others.
fn torn() -> impl Iterator<Item = u8> {
    let (prefixes, singles) = ((0..8).map(|n| (1 << n) - 1), (0..8).map(|n| 1 << n));
    let inverse = |mask: u8| [mask, !mask];
    prefixes.chain(singles).chain([0x55, 0x33, 0x5a, 0x36]).flat_map(inverse)
}

fn verify(vault: &Vault, samples: &[Sample], change: Change) {
    for Sample(domain, block, seal) in samples {
        let opened = vault.open(*domain, seal, b"here", &mut { *block });
        if change.keeps(*domain, seal.era) {
            assert_eq!(opened, Ok(()), "{change:?} {domain:?} {seal:?}");
        }
    }
    done(vault.begin_era());
    sealed(vault, DomainId(2));
}

#[test]
fn a_crash_at_any_point_of_any_change_leaves_old_or_new() {
    let (base, samples) = pool();
    let mut points = 0;
    for change in Change::ALL {
        let disk = base.copied();
        let vault = unlock(&disk, 5);
        let (before, from) = (state(&vault), disk.changes());
        done(change.make(&vault));
        let after = state(&unlock(&disk, 6));
        let changes = disk.changes() - from;
        assert!(changes >= 4 && before != after, "{change:?}");

        let mut found = BTreeSet::new();
        for at in 1..=changes {
            for sectors in torn() {
                let disk = base.copied();
                let vault = unlock(&disk, 5);
                disk.fault_at(at, Fault::Stop);
                assert!(run(change.make(&vault)).is_none());
                let crashed = disk.after_crash(sectors);
                found.insert(again_and_again(&crashed, &samples, change, sectors));
                points += 1;
            }
        }
        assert!(found.remove(&before) && found.remove(&after), "{change:?} {found:?}");
        assert!(found.len() <= change.steps_between(), "{change:?} {found:?}");
    }
    assert!(points > 1000);
}

/// Unlocks what a crash left, also after a crash while that is repaired. The
/// state is the same each time.
fn again_and_again(crashed: &Rc<Disk>, samples: &[Sample], change: Change, sectors: u8) -> State {
    let disk = crashed.copied();
    let vault = unlock(&disk, 7);
    let state_found = state(&vault);
    for at in 1..=disk.changes() {
        let disk = crashed.copied();
        disk.fault_at(at, Fault::Stop);
        assert!(run(Vault::unlock(Rc::clone(&disk), buffers(), &key_file(1), chance(8))).is_none());
        let vault = unlock(&disk.after_crash(sectors), 9);
        assert_eq!(state(&vault), state_found, "{change:?}");
    }
    verify(&vault, samples, change);
    state_found
}

/// A write fails and may have destroyed the copy it went to; the change is
/// tried again, and then the power goes. There is always a whole copy.
#[test]
fn a_crash_after_a_failed_write_leaves_a_whole_copy() {
    let (base, samples) = pool();
    for change in Change::ALL {
        for failing in 1.. {
            let disk = base.copied();
            let vault = unlock(&disk, 5);
            disk.fault_at(failing, Fault::Fail);
            match run(change.make(&vault)).expect("power") {
                Ok(()) => break,
                Err(error) => assert!(matches!(error, KeyError::Device(_))),
            }
            // What a failed flush has kept is lost some day.
            verify(&unlock(&disk.after_crash(0), 6), &samples, change);
            for at in 1.. {
                let disk = base.copied();
                let vault = unlock(&disk, 5);
                disk.fault_at(failing, Fault::Fail);
                run(change.make(&vault)).expect("power").expect_err("fails");
                disk.fault_at(at, Fault::Stop);
                if run(change.make(&vault)).is_some() {
                    verify(&unlock(&disk.after_crash(0), 6), &samples, change);
                    break;
                }
                for sectors in [0, 0x01, 0x0f, 0xf0, 0xff] {
                    verify(&unlock(&disk.after_crash(sectors), 6), &samples, change);
                }
            }
        }
    }
}

/// Until a pool is made there is none, and it can be made again.
#[test]
fn a_crash_while_a_pool_is_made_leaves_none_or_a_whole_one() {
    let disk = Rc::new(Disk::default());
    create(&disk);
    let mut whole = Vec::new();
    for at in 1..=disk.changes() {
        for sectors in torn() {
            let disk = Rc::new(Disk::default());
            disk.fault_at(at, Fault::Stop);
            let first = way("first", &key_file(1));
            let made = Vault::create(Rc::clone(&disk), buffers(), POOL, first, chance(1));
            assert!(run(made).is_none());
            let crashed = disk.after_crash(sectors);
            let found = unlock_with(&crashed, &key_file(1), 2);
            whole.push(found.is_ok());
            match found {
                Ok(vault) => verify_new(&vault),
                Err(error) => {
                    assert_eq!(error, UnlockError::NotAPool);
                    verify_new(&create(&crashed));
                }
            }
        }
    }
    assert!(whole.contains(&true) && whole.contains(&false));
}

fn verify_new(vault: &Vault) {
    done(vault.begin_era());
    let domain = done(vault.add_domain("tenant"));
    sealed(vault, domain);
}
