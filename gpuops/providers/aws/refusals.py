"""How AWS says no, in our words: the one place where its errors, and boto3's, become ours.

Codes: docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html, and each other service's list of its own.
"""

from __future__ import annotations

import contextlib
import difflib
import getpass
import os
import re
from collections.abc import Iterator

import botocore.session
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from gpuops.errors import (
    BadImage,
    BadSetting,
    GpuopsError,
    NoCapacity,
    NoCredentials,
    NoNetwork,
    NotPermitted,
    ProviderError,
    QuotaExceeded,
    RegionNotEnabled,
    StateError,
    Throttled,
    TokenSpent,
    UnsupportedType,
    VendorUnreachable,
)
from gpuops.providers.aws import permissions

# A code that has a part after a dot, as InvalidAMIID.NotFound, is looked up whole and then without it.
_CODES: dict[type[GpuopsError], tuple[str, ...]] = {
    QuotaExceeded: (
        *("InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"),
        *("MaxIOPSLimitExceeded", "VolumeLimitExceeded"),
    ),
    NoCapacity: (
        *("InsufficientCapacity", "InsufficientHostCapacity", "InsufficientInstanceCapacity"),
        *("InsufficientReservedInstanceCapacity", "InsufficientVolumeCapacity", "UnfulfillableCapacity"),
        *("InsufficientAddressCapacity", "InsufficientFreeAddressesInSubnet"),
    ),
    UnsupportedType: ("InvalidInstanceType", "Unsupported"),
    Throttled: (
        *("EC2ThrottledException", "RequestLimitExceeded", "RequestThrottled", "SlowDown", "Throttling"),
        *("ThrottlingException", "TooManyRequestsException"),
    ),
    VendorUnreachable: (
        *("InternalError", "InternalErrorException", "InternalFailure", "InternalServerError", "ServerInternal"),
        *("ServiceException", "ServiceUnavailable", "Unavailable"),
    ),
    NoCredentials: (
        *("AuthFailure", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidAccessKeyId"),
        *("InvalidClientTokenId", "InvalidSignatureException", "MissingAuthenticationToken", "RequestExpired"),
        *("RequestTimeTooSkewed", "SignatureDoesNotMatch", "UnrecognizedClientException"),
    ),
    NotPermitted: (
        *("AccessDenied", "AccessDeniedException", "AuthException", "Blocked", "PendingVerification"),
        "UnauthorizedOperation",
    ),
    RegionNotEnabled: ("OptInRequired", "RegionDisabledException"),
    BadImage: ("InvalidAMIID",),
    StateError: (
        *("EC2InstanceStateInvalidException", "IncorrectInstanceState", "IncorrectState", "OperationNotPermitted"),
        "UnsupportedOperation",
    ),
    TokenSpent: ("IdempotentInstanceTerminated", "IdempotentParameterMismatch"),
    NoNetwork: (
        *("DefaultVpcDoesNotExist", "InvalidSubnet", "InvalidSubnetID", "InvalidVpcID", "InvalidVpcId"),
        *("MissingInput", "VPCIdNotSpecified", "VPCResourceNotSpecified"),
    ),
    BadSetting: ("InvalidBlockDeviceMapping",),
}
_FAMILIES = {code: family for family, codes in _CODES.items() for code in codes}
# With these, what AWS minds is either the type or something else; its text says which.
_PERHAPS_THE_TYPE = {"InvalidParameterCombination", "InvalidParameterValue"}
_ABOUT_THE_TYPE = re.compile(r"instance ?type", re.IGNORECASE)
# Calls by which the SDK finds out who is asking, before the call that was meant.
_SIGNING_IN = {"AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "CreateToken", "GetRoleCredentials"}
_UNKNOWN_TO_A_REGION = {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException"}
_CLOCK_CODES = {"RequestExpired", "RequestTimeTooSkewed"}
_CLOCK_WORDS = re.compile(r"expired|not yet current|clock", re.IGNORECASE)
_RETIRED = re.compile(r"\b(p2|p3|g3s?)\.\w+")
# Every account has these; a later region has to be opted in to (AWS Account Management guide, "Enable or disable
# Regions"). China and GovCloud are accounts of their own.
_ALWAYS_ENABLED = re.compile(
    r"us-(east|west)-[12]|ap-south-1|ap-northeast-[123]|ap-southeast-[12]|ca-central-1|eu-central-1|eu-west-[123]|"
    r"eu-north-1|sa-east-1|(cn|us-gov|us-iso|us-isob|eu-isoe)-.*"
)

_WAYS_IN = (
    "Give AWS credentials in one of these ways: a profile (`aws configure`, then AWS_PROFILE=name), single sign-on "
    "(`aws sso login`), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment. To try gpuops without an "
    "account: gpuops --sandbox up"
)
_CLOCK_MEND = (
    "Set this computer's clock (it has to be right within 5 minutes), for example: sudo timedatectl set-ntp true"
)
_ASK_LATER = "Try again in a minute; `gpuops status` shows what runs meanwhile."


@contextlib.contextmanager
def translated(action: str, *, region: str = "") -> Iterator[None]:
    """Errors of AWS and of boto3 leave this block as ours; `action` completes "AWS refused to …"."""
    try:
        yield
    except sdk.ClientError as error:
        raise _refusal(error, action, region) from error
    except (EOFError, getpass.GetPassWarning) as error:
        raise NoCredentials(
            "The role needs a code of a device (MFA), and there is no terminal to ask for it.",
            next_step="Run a command in a terminal first, for example: aws sts get-caller-identity. "
            "What it gets is kept, and used here until it expires.",
        ) from error
    except ResponseParserError as error:
        raise VendorUnreachable(
            f"What answered when AWS was asked to {action} is not AWS.",
            next_step="Is this network waiting for you to sign in, or does a proxy answer instead? Then try again.",
        ) from error
    except (sdk.HTTPClientError, sdk.ConnectionError) as error:
        raise VendorUnreachable(
            f"AWS did not answer when asked to {action}: {_clean(str(error))}", next_step=_network_mend(error)
        ) from error
    except sdk.BotoCoreError as error:
        if mend := _credentials_mend(error):
            raise NoCredentials(f"AWS doesn't know who is asking: {_clean(str(error))}.", next_step=mend) from error
        raise ProviderError(
            f"AWS could not be asked to {action}: {_clean(str(error))}.", next_step="gpuops doctor"
        ) from error


def code_of(error: BaseException | None) -> str:
    """AWS's error code behind one of our errors, or ""."""
    cause = error.__cause__ if error else None
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, sdk.ClientError) else ""


def message_of(error: BaseException | None) -> str:
    """AWS's own words behind one of our errors, or ""."""
    cause = error.__cause__ if error else None
    return str(cause.response.get("Error", {}).get("Message", "")) if isinstance(cause, sdk.ClientError) else ""


def _refusal(error: sdk.ClientError, action: str, region: str) -> GpuopsError:
    code = str(error.response.get("Error", {}).get("Code", "Unknown"))
    message = str(error.response.get("Error", {}).get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    family = _family(code, message, status=status, operation=error.operation_name, region=region)
    words = _clean(message)
    if family is NotPermitted and code not in {"Blocked", "PendingVerification"}:
        words = _what_is_missing(message, error.operation_name)
    what = f"AWS refused to {action}: {words} ({code})."
    if family is UnsupportedType and (retired := _RETIRED.search(f"{action} {message}")):
        what += f" AWS has retired {retired[1]}."
    ours = family(what, next_step=_next_step(family, code, message, region))
    # "… is not supported in your requested Availability Zone (us-west-2d)": another zone may have it.
    if isinstance(ours, UnsupportedType) and "Availability Zone" in message:
        ours.scope = "zone"
    return ours


def _family(code: str, message: str, *, status: int, operation: str, region: str) -> type[GpuopsError]:
    family = _FAMILIES.get(code) or _FAMILIES.get(code.partition(".")[0])
    if operation in _SIGNING_IN and family not in {Throttled, VendorUnreachable}:
        return NoCredentials
    if code in _UNKNOWN_TO_A_REGION and region and not _ALWAYS_ENABLED.fullmatch(region):
        return RegionNotEnabled
    if code in _PERHAPS_THE_TYPE and _ABOUT_THE_TYPE.search(message):
        return UnsupportedType
    # A 5xx we don't know leaves open whether the call was carried out.
    return family or (VendorUnreachable if status >= 500 else ProviderError)


def _next_step(family: type[GpuopsError], code: str, message: str, region: str) -> str:
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
    if family is NotPermitted and code in {"Blocked", "PendingVerification"}:
        return "Look for a mail of AWS's about this account, and answer it: https://console.aws.amazon.com/support"
    if family is StateError and (guard := re.search(r"disableApi(Stop|Termination)", message)):
        option = {"Stop": "--no-disable-api-stop", "Termination": "--no-disable-api-termination"}[guard[1]]
        return f"It is protected. To lift that: aws ec2 modify-instance-attribute {option}{at} --instance-id ID"
    if family is BadSetting and (size := re.search(r"expect size >= ?(\d+)", message)):
        return f"gpuops up --disk-gb {size[1]}"
    return _NEXT_STEPS.get(family, "gpuops doctor")


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


def _what_is_missing(message: str, operation: str) -> str:
    """The action that is not permitted, and what forbids it. AWS's message has that, but not in every service's form.

    Nothing else of it: who asked and for what are long names (ARNs), and the encoded rest is for AWS's own tools.
    """
    named = re.search(r"perform:? ([a-z0-9-]+:[A-Za-z]+)", message)
    missing = f"{named[1] if named else permissions.action(operation)} is not permitted"
    if denied := re.search(r"explicit deny in (an? [\w -]*?(?:policy|boundary))", message):
        return f"{missing}: {denied[1]} denies it"
    if bounded := re.search(r"because (no (?!identity-based)[\w -]*? allows)", message):
        return f"{missing}: {bounded[1]} it"
    return missing


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


def _credentials_mend(error: sdk.BotoCoreError) -> str:
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


def _network_mend(error: Exception) -> str:
    if isinstance(error, sdk.ProxyConnectionError):
        return "HTTPS_PROXY names a proxy that can't be reached: correct it, or unset it."
    if isinstance(error, sdk.SSLError):
        return "If a proxy here has a certificate of its own, AWS_CA_BUNDLE names the file that vouches for it."
    return "Check the network (and AWS_ENDPOINT_URL, if it is set), then run `gpuops status`."


def _of_profile() -> str:
    profile = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")  # in botocore's order
    return f" --profile {profile}" if profile else ""


def _clean(message: str) -> str:
    """AWS's message without what is no use to a person or nobody else's business: ARNs, keys, encoded reports."""
    text = message.partition("Encoded authorization failure message")[0].strip().split("\n")[0]
    text = re.sub(r"arn:aws[\w-]*:[\w-]*:[\w-]*:\d*:(\S+)", r"\1", text)
    text = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{8,}", r"\1…", text)
    return (text if len(text) <= 400 else f"{text[:400]}…").rstrip(". ")
