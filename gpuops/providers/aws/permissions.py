"""What gpuops asks of AWS, call by call, and the smallest IAM policy that permits it."""

from __future__ import annotations

import json
from collections.abc import Mapping

# Every action stands here once; the policy, the doctor and the texts of refusals are made from these.
LOOKING = (
    "ec2:DescribeImages",
    "ec2:DescribeInstanceAttribute",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances",
    "ec2:DescribeRegions",
    "ec2:DescribeRouteTables",
    "ec2:DescribeSecurityGroupRules",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "ec2:GetConsoleOutput",
    "pricing:GetProducts",
    "servicequotas:GetServiceQuota",
)
LOOKING_UP_IMAGES = ("ssm:GetParameter",)
LAUNCHING = ("ec2:RunInstances",)
TAGGING = ("ec2:CreateTags",)
CONTROLLING = ("ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances")
INTRODUCING = ("ec2-instance-connect:SendSSHPublicKey",)
MAKING_FIREWALLS = ("ec2:CreateSecurityGroup",)
CHANGING_FIREWALLS = (
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:DeleteSecurityGroup",
    "ec2:RevokeSecurityGroupIngress",
    "ec2:UpdateSecurityGroupRuleDescriptionsIngress",
)
NEEDS_NONE = frozenset({"sts:GetCallerIdentity"})
"""What nobody can be denied, so that it stands in no policy."""

DISPENSABLE = frozenset(
    {
        "ec2-instance-connect:SendSSHPublicKey",
        "ec2:DescribeRouteTables",
        "ec2:DescribeSpotPriceHistory",
        "pricing:GetProducts",
        "servicequotas:GetServiceQuota",
        "ssm:GetParameter",
    }
)
"""Without these a machine is launched and reached all the same; something is then not known, or not as easy."""

ACTIONS = (
    *(
        *LOOKING,
        *LOOKING_UP_IMAGES,
        *LAUNCHING,
        *TAGGING,
        *CONTROLLING,
        *INTRODUCING,
        *MAKING_FIREWALLS,
        *CHANGING_FIREWALLS,
    ),
    *NEEDS_NONE,
)

IMAGE_PARAMETERS = "/aws/service/deeplearning/"
"""Where AWS's public parameters for its Deep Learning AMIs are; an account's own are nowhere below it."""
MACHINE_TAG = "gpuops:name"
FIREWALL_TAG = "gpuops:format"


def action(operation: str) -> str:
    """What IAM calls the permission for an operation of the API: "ssm:GetParameter" for GetParameter."""
    return next((name for name in ACTIONS if name.endswith(f":{operation}")), f"ec2:{operation}")


def operation(action: str) -> str:
    """What the API calls the operation that this is the permission for."""
    return action.partition(":")[2]


def policy(partition: str = "aws") -> str:
    """An IAM policy document. Machines are changed only if they bear our tag; firewalls, only if we made them.

    Which condition an action knows: Service Authorization Reference, "Actions, resources, and condition keys for Amazon
    EC2".
    """

    def resources(*kinds: str) -> list[str]:
        # An image and its snapshot may be another account's, and their names then have no account in them.
        return [f"arn:{partition}:ec2:*:{'' if kind in {'image', 'snapshot'} else '*'}:{kind}/*" for kind in kinds]

    ours = {"Null": {f"aws:ResourceTag/{MACHINE_TAG}": "false"}}
    named = {"Null": {f"aws:RequestTag/{MACHINE_TAG}": "false"}}
    only_our_keys = {"ForAllValues:StringLike": {"aws:TagKeys": ["Name", "gpuops:*"]}}
    statements = [
        _allow("Look", LOOKING, ["*"]),
        _allow("LookUpImages", LOOKING_UP_IMAGES, [f"arn:{partition}:ssm:*::parameter{IMAGE_PARAMETERS}*"]),
        _allow("LaunchNamedMachines", LAUNCHING, resources("instance", "volume"), named),
        _allow(
            "LaunchFromWhatThereIs",
            LAUNCHING,
            resources("image", "network-interface", "security-group", "snapshot", "subnet"),
        ),
        _allow("TagMachines", TAGGING, resources("instance"), only_our_keys),
        _allow(
            "TagWhatIsMade",
            TAGGING,
            resources("security-group", "volume"),
            {**only_our_keys, "StringEquals": {"ec2:CreateAction": ["RunInstances", "CreateSecurityGroup"]}},
        ),
        _allow("StartStopDeleteOurs", CONTROLLING, resources("instance"), ours),
        _allow("IntroduceAComputer", INTRODUCING, resources("instance"), ours),
        _allow("MakeTheFirewall", MAKING_FIREWALLS, resources("security-group", "vpc")),
        _allow(
            "ChangeOurFirewall",
            CHANGING_FIREWALLS,
            resources("security-group"),
            {"Null": {f"aws:ResourceTag/{FIREWALL_TAG}": "false"}},
        ),
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)


def _allow(
    name: str, actions: tuple[str, ...], resources: list[str], condition: Mapping[str, object] | None = None
) -> dict[str, object]:
    statement: dict[str, object] = {"Sid": name, "Effect": "Allow", "Action": list(actions), "Resource": resources}
    return {**statement, "Condition": condition} if condition else statement
