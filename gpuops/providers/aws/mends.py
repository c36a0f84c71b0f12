"""What to do about a no of AWS's: the next step that goes with each refusal."""

from __future__ import annotations

import difflib
import os
import re

import botocore.session
from botocore import exceptions as sdk

from gpuops.errors import (
    BadImage,
    BadSetting,
    GpuopsError,
    NoCapacity,
    NoCredentials,
    NoNetwork,
    NotPermitted,
    QuotaExceeded,
    RegionNotEnabled,
    StateError,
    Throttled,
    TokenSpent,
    UnsupportedType,
    VendorUnreachable,
)

UNSEEN_GROUP = ("InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound")
"""The codes that a security group is answered with which was just made, until it is known everywhere."""

_CLOCK_CODES = {"RequestExpired", "RequestTimeTooSkewed"}
_CLOCK_WORDS = re.compile(r"expired|not yet current|clock", re.IGNORECASE)

_WAYS_IN = (
    "Give AWS credentials in one of these ways: a profile (`aws configure`, then AWS_PROFILE=name), single sign-on "
    "(`aws sso login`), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment. To try gpuops without an "
    "account: gpuops --sandbox up"
)
_CLOCK_MEND = (
    "Set this computer's clock (it has to be right within 5 minutes), for example: sudo timedatectl set-ntp true"
)
_ASK_LATER = "Try again in a minute; `gpuops status` shows what runs meanwhile."

_NEXT_STEPS: dict[type[GpuopsError], str] = {
    NoCapacity: "Try again in some minutes, in another region (--region), or with another type (--type).",
    UnsupportedType: "See what there is: gpuops offers. Then: gpuops up --type g4dn.xlarge",
    Throttled: _ASK_LATER,
    VendorUnreachable: _ASK_LATER,
    NotPermitted: "`gpuops doctor` prints what has to be permitted; whoever manages the account can add it.",
    BadImage: "Leave out --image to have one chosen, or name one that this region has.",
    StateError: "See in which state it is: gpuops status",
    TokenSpent: "gpuops up",
    NoNetwork: "Leave out --vpc and --subnet to use the default network, or name ones that this region has.",
    BadSetting: "Check --disk-gb and --disk-type.",
}


def of_refusal(family: type[GpuopsError], code: str, message: str, region: str) -> str:
    """What to do about an answer of AWS's own."""
    at = f" --region {region}" if region else ""
    if family is NoCredentials:
        return _identity_mend(code, message)
    if family is QuotaExceeded:
        service = "ebs" if "Volume" in code or "IOPS" in code else "ec2"
        return f"See what the account may have: aws service-quotas list-service-quotas --service-code {service}{at}"
    if family is RegionNotEnabled:
        return (
            f"Enable it: aws account enable-region --region-name {region or 'REGION'} (takes some minutes), or use "
            "another: gpuops up --region us-west-2. If it is enabled, the credentials are wrong: gpuops doctor"
        )
    if code in UNSEEN_GROUP:
        return "gpuops up"
    if family is NotPermitted and code in {"Blocked", "PendingVerification"}:
        return "Look for a mail of AWS's about this account, and answer it: https://console.aws.amazon.com/support"
    if family is StateError and (guard := re.search(r"disableApi(Stop|Termination)", message)):
        option = {"Stop": "--no-disable-api-stop", "Termination": "--no-disable-api-termination"}[guard[1]]
        return f"It is protected. To lift that: aws ec2 modify-instance-attribute {option}{at} --instance-id ID"
    if family is BadSetting and (size := re.search(r"expect size >= ?(\d+)", message)):
        return f"gpuops up --disk-gb {size[1]}"
    return _NEXT_STEPS.get(family, "gpuops doctor")


def of_credentials(error: sdk.BotoCoreError) -> str:
    """What to do about an SDK that could not find out who is asking; "" for an error of another kind."""
    if isinstance(error, sdk.ProfileNotFound):
        known = botocore.session.Session().available_profiles
        closest = difflib.get_close_matches(str(error.kwargs.get("profile")), known, n=1)
        there = f"There is: {', '.join(known)}." if known else "There is none: aws configure"
        return f"Did you mean AWS_PROFILE={closest[0]}? {there}" if closest else f"{there} AWS_PROFILE names one."
    if isinstance(error, sdk.SSOError | sdk.TokenRetrievalError | sdk.NoAuthTokenError):
        return f"aws sso login{_of_profile()}"
    if isinstance(error, sdk.LoginError):
        return f"aws login{_of_profile()}"
    if isinstance(error, sdk.RefreshWithMFAUnsupportedError):
        return "The role's hour is over. Type the command again, with a new code."
    if isinstance(error, sdk.PartialCredentialsError | sdk.NoCredentialsError | sdk.CredentialRetrievalError):
        return _WAYS_IN
    if isinstance(error, sdk.InvalidConfigError | sdk.ConfigParseError | sdk.InfiniteLoopConfigError):
        return f"Mend that in ~/.aws/config. {_WAYS_IN}"
    return ""


def of_network(error: Exception) -> str:
    """What to do about a line that is cut or held up on the way to AWS."""
    if isinstance(error, sdk.ProxyConnectionError):
        return "HTTPS_PROXY names a proxy that can't be reached: correct it, or unset it."
    if isinstance(error, sdk.SSLError):
        return "If a proxy here has a certificate of its own, AWS_CA_BUNDLE names the file that vouches for it."
    return "Check the network (and AWS_ENDPOINT_URL, if it is set), then run `gpuops status`."


def _identity_mend(code: str, message: str) -> str:
    if code in _CLOCK_CODES or (code.startswith(("Signature", "InvalidSignature")) and _CLOCK_WORDS.search(message)):
        return _CLOCK_MEND
    if code.startswith("ExpiredToken"):
        if os.environ.get("AWS_SESSION_TOKEN"):
            return "AWS_SESSION_TOKEN is of a session that has ended. Set it and its two keys anew, or unset all three."
        return f"Sign in again: aws sso login{_of_profile()}. Without single sign-on: get the session or role anew."
    if code == "AuthFailure":
        return f"A clock that is wrong does this too: gpuops doctor. {_WAYS_IN}"
    if "MultiFactorAuthentication" in message:
        return "Try again with the code that the device shows now."
    return _WAYS_IN


def _of_profile() -> str:
    profile = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")  # in botocore's order
    return f" --profile {profile}" if profile else ""
