//! The gate: how many handshakes a server takes part in. Each costs it five
//! multiplications on the curve, some 0.2 ms, and anybody may ask.
//!
//! While few ask, all are served. Beyond that only those who have shown that
//! they hear what is sent to their address: they bring the token that the server
//! made for it, which it need not remember. Then each host has a share, and all
//! together have a limit, so that data goes on.

use std::hash::Hasher;
use std::time::Duration;

use block_core::Time;
use rand::RngCore;
use rand::rngs::StdRng;
use ring::hmac;

use crate::introduction::{MARK_BYTES, shortened};
use crate::wire::Peer;

/// Handshakes in a turn, so that a turn is bounded.
const IN_A_TURN: u32 = 2;

/// Handshakes that are served without a token: so many at once, and so many a
/// second.
const FREE: Allowance = Allowance { burst: 32, per_second: 32 };

/// Those of one host.
const OF_A_HOST: Allowance = Allowance { burst: 64, per_second: 64 };

/// All of them: a tenth of a core.
const OF_ALL: Allowance = Allowance { burst: 256, per_second: 500 };

/// Hosts that are told apart. Two that fall together share what they have.
const HOSTS: usize = u8::MAX as usize + 1;

/// How long tokens are made under one secret. They are good for the next such
/// time too.
const SECRET_LIFE: Duration = Duration::from_secs(120);

/// What a hello brings that has none.
const NO_TOKEN: [u8; MARK_BYTES] = [0; MARK_BYTES];

/// What becomes of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is served.
    Serve,
    /// Its sender is to come again with this token.
    Retry([u8; MARK_BYTES]),
    /// Nothing: the front asks again.
    Ignore,
}

#[derive(Clone, Copy, Debug)]
struct Allowance {
    burst: u32,
    per_second: u32,
}

/// What is left of an allowance, in billionths.
#[derive(Clone, Copy, Debug)]
struct Left {
    billionths: u64,
    at: Time,
}

const ONE: u64 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct Gate {
    secrets: [hmac::Key; 2],
    renewed: Option<Time>,
    random: StdRng,
    free: Left,
    all: Left,
    hosts: Box<[Left; HOSTS]>,
    this_turn: u32,
}

impl Gate {
    pub(super) fn new(mut random: StdRng) -> Self {
        let secrets = [draw(&mut random), draw(&mut random)];
        let full = |allowance: Allowance| Left {
            billionths: u64::from(allowance.burst) * ONE,
            at: Time::ZERO,
        };
        Self {
            secrets,
            renewed: None,
            random,
            free: full(FREE),
            all: full(OF_ALL),
            hosts: Box::new([full(OF_A_HOST); HOSTS]),
            this_turn: 0,
        }
    }

    /// A turn has ended.
    pub(super) const fn end_turn(&mut self) {
        self.this_turn = 0;
    }

    /// What becomes of a hello that came from there with that token.
    pub(super) fn judge<P: Peer>(
        &mut self,
        now: Time,
        from: P,
        token: &[u8; MARK_BYTES],
    ) -> Verdict {
        self.renew(now);
        let is_free = self.free.has_one(now, FREE);
        if !is_free && !self.knows(from, token) {
            return Verdict::Retry(self.token(0, from));
        }
        let place = self.place(from);
        let host = &mut self.hosts[place];
        let is_within = self.this_turn < IN_A_TURN
            && host.has_one(now, OF_A_HOST)
            && self.all.has_one(now, OF_ALL);
        if !is_within {
            return Verdict::Ignore;
        }
        host.take_one();
        self.all.take_one();
        if is_free {
            self.free.take_one();
        }
        self.this_turn += 1;
        Verdict::Serve
    }

    fn renew(&mut self, now: Time) {
        if self.renewed.is_none_or(|at| now - at >= SECRET_LIFE) {
            self.secrets.swap(0, 1);
            self.secrets[0] = draw(&mut self.random);
            self.renewed = Some(now);
        }
    }

    fn knows<P: Peer>(&self, from: P, token: &[u8; MARK_BYTES]) -> bool {
        if *token == NO_TOKEN {
            return false;
        }
        (0..self.secrets.len()).any(|secret| {
            let made = self.token(secret, from);
            // All bytes are looked at: how long it takes says nothing.
            made.iter().zip(token).fold(0, |all, (one, other)| all | (one ^ other)) == 0
        })
    }

    /// Where the host of a peer is counted. Nobody who does not know the secret
    /// can choose with whom they fall together.
    fn place<P: Peer>(&self, from: P) -> usize {
        usize::from(self.token(0, from.with_port(0))[0])
    }

    fn token<P: Peer>(&self, secret: usize, from: P) -> [u8; MARK_BYTES] {
        let mut address = Address(hmac::Context::with_key(&self.secrets[secret]));
        from.hash(&mut address);
        shortened(&address.0.sign())
    }
}

fn draw(random: &mut StdRng) -> hmac::Key {
    let mut secret = [0; 32];
    random.fill_bytes(&mut secret);
    hmac::Key::new(hmac::HMAC_SHA256, &secret)
}

impl Left {
    fn has_one(&mut self, now: Time, allowance: Allowance) -> bool {
        let passed = u64::try_from((now - self.at).as_nanos()).unwrap_or(u64::MAX);
        self.at = now;
        let gained = passed.saturating_mul(u64::from(allowance.per_second));
        let most = u64::from(allowance.burst) * ONE;
        self.billionths = self.billionths.saturating_add(gained).min(most);
        self.billionths >= ONE
    }

    const fn take_one(&mut self) {
        self.billionths -= ONE;
    }
}

/// What a peer hashes are the bytes of its address.
struct Address(hmac::Context);

impl Hasher for Address {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::wire::udp::UdpPeer;

    fn at(host: u8, port: u16) -> UdpPeer {
        std::net::SocketAddr::from(([10, 0, 0, host], port)).into()
    }

    fn gate() -> Gate {
        Gate::new(StdRng::seed_from_u64(1))
    }

    /// Asks once in each of so many turns at one moment; how many were served.
    fn served(gate: &mut Gate, now: Time, from: UdpPeer, token: [u8; 16], times: u32) -> u32 {
        let mut served = 0;
        for _ in 0..times {
            served += u32::from(gate.judge(now, from, &token) == Verdict::Serve);
            gate.end_turn();
        }
        served
    }

    fn token(gate: &mut Gate, now: Time, from: UdpPeer) -> [u8; 16] {
        match gate.judge(now, from, &NO_TOKEN) {
            Verdict::Retry(token) => token,
            other => panic!("{other:?} without a token"),
        }
    }

    #[test]
    fn a_flood_is_asked_for_tokens_and_those_who_bring_theirs_are_served() {
        let (mut gate, now) = (gate(), Time::from_nanos(1));
        assert_eq!(served(&mut gate, now, at(1, 1), NO_TOKEN, 1000), FREE.burst);
        let mine = token(&mut gate, now, at(2, 1));
        assert_eq!(
            gate.judge(now, at(2, 2), &mine),
            Verdict::Retry(token(&mut gate, now, at(2, 2))),
            "it is good for one address"
        );
        assert_eq!(served(&mut gate, now, at(2, 1), mine, 10), 10);
    }

    #[test]
    fn one_host_has_its_share_and_all_have_a_limit() {
        let (mut gate, now) = (gate(), Time::from_nanos(1));
        served(&mut gate, now, at(1, 1), NO_TOKEN, 100);
        let mut total = FREE.burst;
        for host in 2..40 {
            let mut of_host = 0;
            for port in 1..4 {
                let mine = token(&mut gate, now, at(host, port));
                of_host += served(&mut gate, now, at(host, port), mine, 100);
            }
            assert!(of_host <= OF_A_HOST.burst, "of whatever port");
            total += of_host;
        }
        assert_eq!(total, OF_ALL.burst);
        let later = now + Duration::from_secs(1);
        let mine = token_after(&mut gate, later, at(2, 1));
        assert!(served(&mut gate, later, at(2, 1), mine, 100) > 0, "it fills again");
    }

    fn token_after(gate: &mut Gate, now: Time, from: UdpPeer) -> [u8; 16] {
        served(gate, now, at(99, 9), NO_TOKEN, 100);
        token(gate, now, from)
    }

    #[test]
    fn a_turn_has_its_limit() {
        let (mut gate, now) = (gate(), Time::from_nanos(1));
        let verdicts = [0; 5].map(|_| gate.judge(now, at(1, 1), &NO_TOKEN) == Verdict::Serve);
        assert_eq!(verdicts, [true, true, false, false, false]);
        gate.end_turn();
        assert_eq!(gate.judge(now, at(1, 1), &NO_TOKEN), Verdict::Serve);
    }

    #[test]
    fn a_token_is_good_for_two_lives_of_a_secret_at_most() {
        let mut gate = gate();
        let start = Time::from_nanos(1);
        let mine = token_after(&mut gate, start, at(2, 1));
        let next = start + SECRET_LIFE;
        served(&mut gate, next, at(1, 1), NO_TOKEN, 100);
        assert_eq!(served(&mut gate, next, at(2, 1), mine, 1), 1);
        let last = next + SECRET_LIFE;
        served(&mut gate, last, at(1, 1), NO_TOKEN, 100);
        assert_eq!(served(&mut gate, last, at(2, 1), mine, 1), 0);
    }
}
