{{/* What the pods of server, Job and test have in common. */}}
{{- define "twinshot.podBasics" -}}
serviceAccountName: {{ include "twinshot.serviceAccount" . }}
automountServiceAccountToken: false
# A service called twinshot would otherwise set TWINSHOT_PORT to its own address.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{/* What their containers have in common. */}}
{{- define "twinshot.containerBasics" -}}
image: {{ include "twinshot.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}

{{/* /tmp and /cache, all that a container may write to. */}}
{{- define "twinshot.writable" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: cache
  {{- if .Values.cache.enabled }}
  persistentVolumeClaim: {claimName: {{ include "twinshot.claim" . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.cache.ephemeralSize }}}
  {{- end }}
{{- end }}

{{/* GPUs are requested as they are limited: (list $ "limits"). */}}
{{- define "twinshot.resources" -}}
{{- $root := index . 0 }}
{{- $given := get $root.Values.resources (index . 1) | default dict }}
{{- $gpus := ternary (dict $root.Values.gpu.resource (int $root.Values.gpu.count | toString)) dict (gt (int $root.Values.gpu.count) 0) }}
{{- merge (dict) $given $gpus | toYaml }}
{{- end }}

{{/* One constraint for every label of topologySpread; pods of an update are spread by themselves. */}}
{{- define "twinshot.spread" -}}
{{- range $label, $skew := .Values.topologySpread }}
{{- if $skew }}
- topologyKey: {{ $label }}
  maxSkew: {{ int $skew }}
  whenUnsatisfiable: {{ $.Values.topologySpreadWhenUnsatisfiable }}
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "twinshot.selector" (list $ "server") | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}
