{{/* Values that contradict each other: one sentence a line, each of which says what to change. */}}
{{- define "twinshot.problems" -}}
{{- if eq .Values.image.tag "latest" }}
image.tag latest tells nobody what runs: set a version, as {{ .Chart.AppVersion }}-cuda, or image.digest.
{{- end }}
{{- include "twinshot.problems.farewell" . }}
{{- include "twinshot.problems.gpu" . }}
{{- include "twinshot.problems.access" . }}
{{- include "twinshot.problems.cache" . }}
{{- include "twinshot.problems.pods" . }}
{{- include "twinshot.problems.twice" . }}
{{- end }}

{{- define "twinshot.problems.farewell" -}}
{{- $server := .Values.server }}
{{- $needed := include "twinshot.farewellSeconds" . | int }}
{{- if lt (include "twinshot.graceSeconds" . | int) $needed }}
terminationGracePeriodSeconds is {{ .Values.terminationGracePeriodSeconds | int }}, but lifecycle.preStopSeconds, server.drainSeconds and server.shutdownSeconds are {{ $needed }} s together: raise it to {{ $needed }} at least, leave it null, or lower those.
{{- end }}
{{- if and (eq (float64 .Values.lifecycle.preStopSeconds) 0.0) (eq (float64 $server.drainSeconds) 0.0) }}
lifecycle.preStopSeconds and server.drainSeconds are both 0, so that a pod would refuse requests while it is still in the endpoints: set one of them to 5.
{{- end }}
{{- if lt (mulf $server.shutdownSeconds 1000) (float64 $server.deadlineMs) }}
server.shutdownSeconds ({{ int $server.shutdownSeconds }} s) is shorter than server.deadlineMs ({{ int $server.deadlineMs }} ms), so that a pod that ends would cut off requests that it accepted: raise the one or lower the other.
{{- end }}
{{- if lt (float64 .Values.probes.startup.budgetSeconds) (float64 .Values.probes.startup.periodSeconds) }}
probes.startup.budgetSeconds ({{ int .Values.probes.startup.budgetSeconds }}) is shorter than probes.startup.periodSeconds ({{ int .Values.probes.startup.periodSeconds }}): raise it to what loading and warming take.
{{- end }}
{{- end }}

{{/* fp8 needs compute capability 8.9 or newer: Ada, Hopper, Blackwell. */}}
{{- define "twinshot.problems.gpu" -}}
{{- $gpu := .Values.gpu }}
{{- $fp8 := or (eq .Values.model.precision "fp8") .Values.model.textFp8 }}
{{- $setting := ternary "model.precision fp8" "model.textFp8" (eq .Values.model.precision "fp8") }}
{{- $able := "(?i)(^|[^a-z0-9])(h100|h200|h20|h800|gh200|l4|l40|l40s|l20|l2|b100|b200|b300|gb200|gb300|gb10|rtx-?(40|50)[0-9]{2}.*|rtx-?[0-9]+.*-ada.*|rtx-?pro-.*)($|[^a-z0-9])" }}
{{- if and $fp8 (eq (int $gpu.count) 0) }}
{{ $setting }} needs a GPU, but gpu.count is 0: set gpu.count to 1, or choose fp32 or bf16 without textFp8.
{{- else if and $fp8 (not $gpu.product) }}
{{ $setting }} needs a GPU that computes in fp8: name the nodes' GPU in gpu.product, as NVIDIA-L4 or NVIDIA-H100-80GB-HBM3, or choose bf16 without textFp8.
{{- else if and $fp8 (not (regexMatch $able $gpu.product)) }}
{{ $setting }} needs a GPU that computes in fp8, and gpu.product {{ $gpu.product }} is not known to (Ada, Hopper and Blackwell do): choose bf16 without textFp8, or another GPU.
{{- end }}
{{- if and (eq .Values.model.backend "fused") (eq (int $gpu.count) 0) }}
model.backend fused replays CUDA graphs, but gpu.count is 0: set gpu.count to 1, or choose eager.
{{- end }}
{{- range $kind, $amounts := .Values.resources }}
{{- if hasKey $amounts $gpu.resource }}
resources.{{ $kind }} names {{ $gpu.resource }}: set gpu.count instead, from which requests and limits follow alike.
{{- end }}
{{- end }}
{{- end }}

{{- define "twinshot.problems.access" -}}
{{- $auth := .Values.auth }}
{{- $public := include "twinshot.public" . }}
{{- if and $public (not $auth.existingSecret) (not $auth.allowAnonymous) }}
The service is reachable from outside (ingress, httpRoute or service.type) and asks for no key: set auth.existingSecret to a secret with API keys, or auth.allowAnonymous to true if something in front asks for keys.
{{- end }}
{{- range $name := list "adminKey" "testKey" }}
{{- if and (get $auth $name) (not $auth.existingSecret) }}
auth.{{ $name }} names a key of a secret that auth.existingSecret does not name: set auth.existingSecret, or leave auth.{{ $name }} empty.
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}
ingress.enabled is true, but ingress.host is empty and would answer to every name: set ingress.host.
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
httpRoute.enabled is true, but no gateway is named: set httpRoute.parentRefs.
{{- end }}
{{- $others := false }}
{{- range .Values.networkPolicy.from }}
{{- if or (hasKey . "namespaceSelector") (hasKey . "ipBlock") }}{{ $others = true }}{{ end }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (not $others) (or $public .Values.serviceMonitor.enabled) }}
networkPolicy.from lets in only pods of the release's own namespace, which would keep out {{ ternary "what comes from outside" "Prometheus" (ne $public "") }}: add a namespaceSelector or ipBlock of where it comes from, or set networkPolicy.enabled to false.
{{- end }}
{{- end }}

{{- define "twinshot.problems.cache" -}}
{{- $cache := .Values.cache }}
{{- $most := include "twinshot.mostPods" . | int }}
{{- if and $cache.enabled (not $cache.existingClaim) (not (has "ReadWriteMany" $cache.accessModes)) }}
{{- if gt $most 1 }}
cache.accessModes {{ join ", " $cache.accessModes }} lets one node alone mount the cache, but there may be {{ $most }} pods: use ReadWriteMany, or set cache.enabled to false.
{{- else if gt (int .Values.strategy.maxSurge) 0 }}
cache.accessModes {{ join ", " $cache.accessModes }} lets one node alone mount the cache, but an update starts a second pod (strategy.maxSurge): use ReadWriteMany, or set strategy.maxSurge to 0 and strategy.maxUnavailable to 1.
{{- end }}
{{- end }}
{{- if and $cache.existingClaim (not $cache.enabled) }}
cache.existingClaim names a claim that is not used, as cache.enabled is false: set cache.enabled to true.
{{- end }}
{{- if and $cache.prePull.enabled (not $cache.enabled) }}
cache.prePull.enabled needs a volume that the pods share: set cache.enabled to true.
{{- end }}
{{- if and $cache.prePull.enabled (not (include "twinshot.fromHub" .)) }}
cache.prePull.enabled fetches from the Hub, but model.checkpoint {{ .Values.model.checkpoint }} is no Hub id: set it to false, or model.checkpoint to org/name.
{{- end }}
{{- end }}

{{- define "twinshot.problems.pods" -}}
{{- $budget := .Values.podDisruptionBudget }}
{{- $fewest := include "twinshot.fewestPods" . | int }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
autoscaling.enabled and keda.enabled are both true, and both would set the number of pods: choose one.
{{- end }}
{{- range $name := list "autoscaling" "keda" }}
{{- with get $.Values $name }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{ $name }}.minReplicas ({{ int .minReplicas }}) is above {{ $name }}.maxReplicas ({{ int .maxReplicas }}): lower the one or raise the other.
{{- end }}
{{- end }}
{{- end }}
{{- if eq (add (int .Values.strategy.maxSurge) (int .Values.strategy.maxUnavailable)) 0 }}
strategy.maxSurge and strategy.maxUnavailable are both 0, so that no update could begin: set maxSurge to 1, or maxUnavailable to 1 where no GPU is spare.
{{- end }}
{{- if $budget.enabled }}
{{- $most := not (kindIs "invalid" $budget.maxUnavailable) }}
{{- $least := not (kindIs "invalid" $budget.minAvailable) }}
{{- if eq $most $least }}
podDisruptionBudget takes either maxUnavailable or minAvailable: set one of them to null.
{{- else if and $least (ge (int $budget.minAvailable) $fewest) }}
podDisruptionBudget.minAvailable ({{ int $budget.minAvailable }}) leaves none of {{ $fewest }} pods to be moved, so that no node could be drained: lower it, or use maxUnavailable.
{{- end }}
{{- end }}
{{- $monitor := .Values.serviceMonitor }}
{{- if gt (trimSuffix "s" $monitor.scrapeTimeout | int) (trimSuffix "s" $monitor.interval | int) }}
serviceMonitor.scrapeTimeout ({{ $monitor.scrapeTimeout }}) is longer than serviceMonitor.interval ({{ $monitor.interval }}): lower the one or raise the other.
{{- end }}
{{- end }}

{{/* What is set by a value must not be set again by extraArgs or extraEnv: checks above would not see it. */}}
{{- define "twinshot.problems.twice" -}}
{{- $places := dict "port" "" "device" "gpu.count" "replicas" "gpu.count" "api_keys_file" "auth.existingSecret" "api_keys" "auth.existingSecret" "admin_key" "auth.adminKey" "hf_token" "hfToken.existingSecret" "hf_hub_offline" "cache.prePull.enabled" }}
{{- range $section := list "model" "server" }}
{{- range $name, $_ := get $.Values $section }}
{{- $_ := set $places (snakecase $name) (printf "%s.%s" $section $name) }}
{{- end }}
{{- end }}
{{- range $argument := .Values.extraArgs }}
{{- $option := $argument | splitList "=" | first }}
{{- $field := $option | trimPrefix "--" | replace "-" "_" }}
{{- if and (hasPrefix "--" $option) (hasKey $places $field) }}
extraArgs holds {{ $option }}, which {{ with get $places $field }}{{ . }} sets: change that{{ else }}the chart sets: leave it out{{ end }} instead.
{{- end }}
{{- end }}
{{- range $variable, $_ := .Values.extraEnv }}
{{- $field := $variable | trimPrefix "TWINSHOT_" | lower }}
{{- if and (regexMatch "^(TWINSHOT|HF)_" $variable) (hasKey $places $field) }}
extraEnv holds {{ $variable }}, which {{ with get $places $field }}{{ . }} sets: change that{{ else }}the chart sets: leave it out{{ end }} instead.
{{- end }}
{{- end }}
{{- range $label, $_ := .Values.podLabels }}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (eq $label "helm.sh/chart") }}
podLabels holds {{ $label }}, which the chart sets and finds its pods by: leave it out.
{{- end }}
{{- end }}
{{- end }}
