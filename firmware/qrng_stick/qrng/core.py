"""The stick without its hardware: control requests in, frames out (docs/spec/qrng-stick.md §3 to §6).

Pure apart from the `front` it is given, so the same file runs on the chip and, over a noise model, in the host's tests.
Raw samples go out whatever the tests say: a flag is set, the host sees the failure, nothing is stopped or replaced.
"""

from array import array

from edgeseal.stick import frame, health, mac, messages

from . import interface, loops, loops_plain
from .sweep import Sweep

VERSION = (0, 1, 0)
RATE = 20000
BITS = 12
CLAIM = 4  # bits of min-entropy per sample (docs/qrng-model.md)
NOMINAL = 3  # LED level of RAW frames
SETTLE = 3  # blocks dropped after the LED level changed: 72 ms
HEALTH_EVERY = 1024  # RAW frames between two HEALTH frames: 25 s

_STARTUP = (health.rct_cutoff(CLAIM, health.STARTUP_ALPHA), health.apt_cutoff(CLAIM, 512, health.STARTUP_ALPHA))
_RUNNING = (health.rct_cutoff(CLAIM, health.CONTINUOUS_ALPHA), health.apt_cutoff(CLAIM, 512, health.CONTINUOUS_ALPHA))


class Identity:
    """What GET_INFO says about this stick and this boot; `levels` are the PWM duties of L1 to L4."""

    def __init__(
        self, *, unique_id: bytes, board: int, boot_id: int, levels: tuple[int, int, int, int], firmware_hash: bytes
    ) -> None:
        """Take an id of 8 bytes, a boot_id that differs after every reset (no secret), 16 bytes of the build's hash."""
        self.unique_id, self.board, self.boot_id = unique_id, board, boot_id
        self.levels, self.firmware_hash = levels, firmware_hash


class Stick:
    """One stick from power-up: `request` and `commit` from the USB callback, `step` from the main loop."""

    def __init__(self, identity: Identity, front: interface.Front, k_stick: bytes | None) -> None:
        """`k_stick` is the pairing secret of 32 bytes, None on a stick that was never paired."""
        self._identity, self._front, self._k_stick = identity, front, k_stick
        self._key: mac.Hmac | None = None
        self._nonce = bytearray(mac.NONCE_LENGTH)
        self._buffers = (bytearray(frame.FRAME_LENGTH), bytearray(frame.FRAME_LENGTH))
        self._scan = array("i", [0] * loops_plain.SCAN_LENGTH)
        self._seq = self._sent = self._seen_overruns = 0
        self._streaming = False
        self._period = self._until_sweep = 0  # samples between two sweeps; 0: only on request
        self._sweep: Sweep | None = None
        self._sweep_wanted = self._boot_wanted = False
        self._due: list[int] = []  # kinds of frames to send before the next RAW frame
        self._position = 0  # number of the sample after the last block
        self._adjoining = False  # whether the next block should follow the last one
        self._passed = self._alarmed = False
        self._good = 0  # samples in a row that passed, while start-up is not passed
        self._flags = self._rct = self._apt = 0  # since the last GET_STATUS
        self._cal_invalid = 0
        self._v_dc = self._temperature = 0
        self._settle = 0
        self._new_run()

    # -- control requests: called from the USB callback, quick, no I/O -------------------------------------------------

    def request(self, packet: bytes | bytearray | memoryview) -> bytes | bytearray | None:
        """Return, at the SETUP stage, the record to send, the buffer to fill, b"" for no data, None for STALL."""
        setup = messages.Setup.accept(packet)
        if setup is None or (setup.request == messages.BOOTLOADER and not self._front.strapped()):
            return None
        if setup.request == messages.GET_INFO:
            return self.info().encode()[: setup.length]
        if setup.request == messages.GET_STATUS:
            return self.status().encode()[: setup.length]
        return self._nonce if setup.request == messages.SET_NONCE else b""

    def commit(self, packet: bytes | bytearray | memoryview) -> None:
        """Do, at the ACK stage, what was asked, now that the host has seen it accepted."""
        setup = messages.Setup.accept(packet)
        if setup is None:
            return
        if setup.request == messages.GET_STATUS:
            self._flags = self._rct = self._apt = 0
        elif setup.request == messages.SET_NONCE:
            self._take_nonce()
        elif setup.request == messages.SET_STREAM:
            self._set_stream(setup.value, setup.option)
        elif setup.request == messages.RUN_CAL:
            self._sweep_wanted = True
        elif setup.request == messages.SELF_TEST:
            self._restart_tests()
        elif setup.request == messages.BOOTLOADER:
            self._boot_wanted = True

    def bus_reset(self) -> None:
        """Stop streaming and forget the session: a host that resets the bus starts over."""
        self._set_stream(messages.STOP, 0)
        self._key = None

    def info(self) -> messages.Info:
        """Return what GET_INFO answers."""
        features = messages.PAIRED if self._k_stick else 0
        features |= messages.STRAPPED if self._front.strapped() else 0
        features |= messages.INFO_SIMULATED if self._front.simulated else 0
        who = self._identity
        return messages.Info(
            firmware=VERSION,
            unique_id=who.unique_id,
            bits=BITS,
            source_class=messages.QUANTUM,
            h_claim=CLAIM * 256,
            rate=RATE,
            levels=who.levels,
            nominal=NOMINAL,
            board=who.board,
            features=features,
            boot_id=who.boot_id,
            firmware_hash=who.firmware_hash,
        )

    def status(self) -> messages.Status:
        """Return what GET_STATUS and a HEALTH frame say."""
        return messages.Status(
            state=self._state(),
            led=self._sweep.level if self._sweep else NOMINAL,
            flags=self._flags,
            frames=self._sent,
            overruns=self._front.overruns & 0xFFFFFFFF,
            rct=min(self._rct, 0xFFFF),
            apt=self._apt,
            temperature=self._temperature,
            v_dc=self._v_dc,
            boot_id=self._identity.boot_id,
            uptime=self._front.now_us() // 1000000 & 0xFFFFFFFF,
        )

    @property
    def busy(self) -> bool:
        """Whether steps will lead to a frame without another request."""
        return self._streaming or self._sweep is not None or self._sweep_wanted

    # -- main loop -----------------------------------------------------------------------------------------------------

    def step(self) -> bytearray | None:
        """Advance by at most one block; return a frame to send (valid until the second next one) or None."""
        if self._boot_wanted:
            self._front.bootloader()
        if self._streaming and self._due:
            return self._record_frame(self._due.pop(0))
        if self._sweep_wanted and self._sweep is None:
            self._begin_sweep()
        taken = self._front.take()
        if taken is None:
            return None
        block, first_sample, t_us = taken
        gap = self._adjoining and first_sample != self._position
        self._position, self._adjoining = first_sample + frame.SAMPLES, True
        if self._settle:
            self._settle -= 1
            return None
        if self._sweep is not None:
            return self._advance_sweep(block, gap, t_us)
        if not self._streaming:
            return None
        return self._raw_frame(block, first_sample, t_us, gap)

    def _raw_frame(self, block: bytearray, first_sample: int, t_us: int, gap: bool) -> bytearray:
        """Test a block and wrap it, whatever the tests say."""
        flags = self._test(block, gap) | frame.LED_ON
        flags |= self._cal_invalid | (frame.STARTUP_OK if self._passed else 0)
        buf = self._header(frame.RAW, flags, t_us, first_sample, frame.SAMPLES)
        buf[frame.HEADER_LENGTH : frame.SIGNED_LENGTH] = block
        frame.seal(buf, self._key)
        self._count_down()
        return buf

    def _test(self, block: bytearray, gap: bool) -> int:
        """Run the 90B tests over a block; return the flags of this frame."""
        flags = 0
        if gap or self._front.overruns != self._seen_overruns:
            self._seen_overruns = self._front.overruns
            self._new_run()
            flags |= frame.OVERRUN
        scan = self._scan
        loops.scan(block, frame.SAMPLES, scan)
        rct, apt = _RUNNING if self._passed else _STARTUP
        longest, highest = scan[loops_plain.LONGEST], scan[loops_plain.HIGHEST]
        self._rct, self._apt = max(self._rct, longest), max(self._apt, highest)
        flags |= frame.RCT_ALARM if longest >= rct else 0
        flags |= frame.APT_ALARM if highest >= apt else 0
        flags |= frame.SATURATED if scan[loops_plain.CLIPPED] else 0
        self._judge(flags & (frame.RCT_ALARM | frame.APT_ALARM))
        self._flags |= flags
        return flags

    def _judge(self, alarm: int) -> None:
        """Follow start-up: 4096 good samples in a row pass it, any alarm begins it again."""
        if alarm:
            self._passed, self._alarmed, self._good = False, True, 0
            self._front.alarm(True)
        elif not self._passed:
            self._good += frame.SAMPLES
            if self._good >= health.STARTUP_SAMPLES:
                self._passed, self._alarmed = True, False
                self._front.alarm(False)
                self._due.append(frame.HEALTH)

    def _count_down(self) -> None:
        """Plan the next sweep and the next HEALTH frame."""
        if self._sent % HEALTH_EVERY == 0:
            self._due.append(frame.HEALTH)
        if self._period:
            self._until_sweep -= frame.SAMPLES
            if self._until_sweep <= 0:
                self._sweep_wanted = True

    # -- calibration ---------------------------------------------------------------------------------------------------

    def _begin_sweep(self) -> None:
        """Go dark."""
        self._sweep_wanted = False
        self._sweep = Sweep()
        self._change_level(0)

    def _advance_sweep(self, block: bytearray, gap: bool, t_us: int) -> bytearray | None:
        """Feed the sweep; after the last level, return the CAL frame and go back to where the stick was."""
        sweep = self._sweep
        if sweep is None or not sweep.feed(block, gap):
            return None
        sweep.close_level(self._front.monitor())
        if sweep.level < frame.LEVELS:
            self._change_level(sweep.level)
            return None
        self._sweep = None
        self._v_dc = sweep.records[NOMINAL].v_dc
        self._temperature = self._front.temperature()
        self._cal_invalid = 0 if sweep.plausible() else frame.CAL_INVALID
        self._until_sweep = self._period
        self._change_level(NOMINAL)
        return self._encode(frame.CAL, messages.encode_sweep(sweep.records), t_us) if self._streaming else None

    def _change_level(self, level: int) -> None:
        self._front.led(level)
        self._front.restart()
        self._settle = SETTLE
        self._adjoining = False
        self._new_run()

    # -- session and frames --------------------------------------------------------------------------------------------

    def _take_nonce(self) -> None:
        """Start a session: sequence numbers from 0, the session's key, start-up test."""
        self._seq = 0
        if self._k_stick:
            who = self._identity
            key = mac.session_key(self._k_stick, bytes(self._nonce), who.boot_id, who.unique_id.hex())
            self._key = mac.Hmac(key)
        self._restart_tests()

    def _set_stream(self, mode: int, seconds: int) -> None:
        self._streaming = mode != messages.STOP
        self._period = self._until_sweep = seconds * RATE if mode == messages.STREAM_CALIBRATED else 0
        self._sweep_wanted = self._period > 0
        self._due = [frame.INFO]  # first, so that a paired host gets it under the MAC
        if self._sweep is not None:
            self._sweep = None
            self._change_level(NOMINAL)
        self._restart_tests()

    def _restart_tests(self) -> None:
        self._passed, self._good = False, 0
        self._new_run()

    def _new_run(self) -> None:
        """Forget runs and windows: the next sample does not follow the last one."""
        scan = self._scan
        scan[loops_plain.LAST] = loops_plain.NO_SAMPLE
        scan[loops_plain.RUN] = scan[loops_plain.COUNT] = scan[loops_plain.LEFT] = 0
        scan[loops_plain.WINDOW] = health.WINDOW
        if not self._passed:
            self._good = 0

    def _record_frame(self, kind: int) -> bytearray:
        record = self.info() if kind == frame.INFO else self.status()
        return self._encode(kind, record.encode(), self._front.now_us())

    def _encode(self, kind: int, payload: bytes, t_us: int) -> bytearray:
        """Return a frame that is not RAW; it stands between samples, so it names the next one."""
        buf = self._header(kind, self._cal_invalid, t_us, self._position, _ITEMS[kind])
        buf[frame.HEADER_LENGTH : frame.SIGNED_LENGTH] = payload + bytes(frame.PAYLOAD_LENGTH - len(payload))
        frame.seal(buf, self._key)
        return buf

    def _header(self, kind: int, flags: int, t_us: int, first_sample: int, count: int) -> bytearray:
        """Return the next buffer with its header written; counts the frame."""
        buf = self._buffers[self._sent & 1]
        frame.put_header(
            buf,
            kind=kind,
            flags=flags | (frame.SIMULATED if self._front.simulated else 0),
            boot_id=self._identity.boot_id,
            seq=self._seq,
            t_us=t_us,
            first_sample=first_sample,
            count=count,
            bits=BITS,
            channel=0,
            led=NOMINAL,
        )
        self._seq += 1
        self._sent += 1
        return buf

    def _state(self) -> int:
        """Return the state as GET_STATUS names it."""
        if self._sweep is not None:
            return messages.CALIBRATING
        if not self._streaming:
            return messages.IDLE
        if self._alarmed:
            return messages.ALARMED
        return messages.STREAMING if self._passed else messages.STARTUP


_ITEMS = {frame.CAL: frame.LEVELS, frame.HEALTH: 1, frame.INFO: 1}
