"""How AWS says no, in our words: the one place where its errors, and boto3's, become ours.

Codes: docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html, and each other service's list of its own.
"""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Iterator

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
from gpuops.providers.aws import mends, permissions

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
        # As definite, and to be tried again: a group that was just made takes a moment to be known everywhere.
        *mends.UNSEEN_GROUP,
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
_RETIRED = re.compile(r"\b(p2|p3|g3s?)\.\w+")
# Every account has these; a later region has to be opted in to (AWS Account Management guide, "Enable or disable
# Regions"). China and GovCloud are accounts of their own.
_ALWAYS_ENABLED = re.compile(
    r"us-(east|west)-[12]|ap-south-1|ap-northeast-[123]|ap-southeast-[12]|ca-central-1|eu-central-1|eu-west-[123]|"
    r"eu-north-1|sa-east-1|(cn|us-gov|us-iso|us-isob|eu-isoe)-.*"
)


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
            f"AWS did not answer when asked to {action}: {_clean(str(error))}", next_step=mends.of_network(error)
        ) from error
    except sdk.BotoCoreError as error:
        if mend := mends.of_credentials(error):
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
    elif code in mends.UNSEEN_GROUP:
        words = "the firewall (security group) isn't seen everywhere yet"
    what = f"AWS refused to {action}: {words} ({code})."
    if family is UnsupportedType and (retired := _RETIRED.search(f"{action} {message}")):
        what += f" AWS has retired {retired[1]}."
    ours = family(what, next_step=mends.of_refusal(family, code, message, region))
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


def _clean(message: str) -> str:
    """AWS's message without what is no use to a person or nobody else's business: ARNs, keys, encoded reports."""
    text = message.partition("Encoded authorization failure message")[0].strip().split("\n")[0]
    text = re.sub(r"arn:aws[\w-]*:[\w-]*:[\w-]*:\d*:(\S+)", r"\1", text)
    text = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{8,}", r"\1…", text)
    return (text if len(text) <= 400 else f"{text[:400]}…").rstrip(". ")
