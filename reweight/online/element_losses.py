"""Table of the losses that can stand in place of cross-entropy."""

from __future__ import annotations

MEMBERS = {
    "aldr_kl": "karat.reweight.online.ldr_kl:AldrKl",
    "ldr_kl": "karat.reweight.online.ldr_kl:LdrKl",
    "temp_net": "karat.reweight.online.temp_net:TempNet",
}
